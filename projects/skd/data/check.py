"""What is wrong with a data set in COCO's format: all of it at once."""

import json
import math
import os
from collections import Counter
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools import mask as mask_util

LISTS = ("images", "annotations", "categories")
LONGEST = 20  # times as long as wide: little is left of such an image at a usual size


class Problem(NamedTuple):
    """
    Attributes:
        level: "error" for what stops training, "warning" for what Detectron2 passes over.
        where: the file, image, annotation or category.
        what: is wrong, and what would be right.
    """

    level: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_coco(json_file: str, image_root: str, read_images: bool = True) -> List[Problem]:
    """
    Check annotations and images.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder the images' ``file_name`` starts from.
        read_images: decode every image as well, which takes long.
    """
    content, problems = read_coco(json_file)
    return problems or check_content(content, image_root, read_images)


def read_coco(json_file: str) -> Tuple[Any, List[Problem]]:
    """The content of an annotation file, and what makes it no COCO file."""
    try:
        with PathManager.open(json_file) as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError) as error:
        return None, [Problem("error", json_file, f"cannot be read as JSON: {error}")]
    problems = _structure(content)
    return content, [Problem(p.level, f"{json_file}, {p.where}", p.what) for p in problems]


def check_content(
    content: Dict[str, Any], image_root: str, read_images: bool = True
) -> List[Problem]:
    """As :func:`check_coco`, of what :func:`read_coco` found nothing wrong with."""
    problems = list(_annotations(content)) + list(_files(content, image_root))
    if read_images:
        missing = {p.where for p in problems if p.level == "error"}
        for image in content["images"]:
            where = _name(image)
            if where not in missing:
                problems += _pixels(image, os.path.join(image_root, image["file_name"]), where)
    return problems


def _name(image: Dict[str, Any]) -> str:
    return f"image {image['id']} ('{image['file_name']}')"


def masks_missing(content: Dict[str, Any]) -> int:
    """How many annotations have no mask."""
    return sum(not annotation.get("segmentation") for annotation in content["annotations"])


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _structure(content: Any) -> Iterator[Problem]:
    """What makes the file no COCO file."""
    if not isinstance(content, dict):
        yield Problem("error", "top", f"is a {type(content).__name__}; it must be an object")
        return
    needs = {
        "images": ("id", "file_name"),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id", "name"),
    }
    for key in LISTS:
        if not isinstance(content.get(key), list):
            yield Problem("error", key, f"has no list '{key}'")
            continue
        for i, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                yield Problem("error", f"{key}[{i}]", "is no object")
                continue
            missing = [name for name in needs[key] if name not in entry]
            if missing:
                yield Problem("error", f"{key}[{i}]", f"has no {', '.join(map(repr, missing))}")
                continue
            for name in needs[key]:
                value, text = entry[name], name in ("file_name", "name")
                if not (isinstance(value, str) if text else _is_id(value)):
                    kind = "text" if text else "number or text"
                    yield Problem("error", f"{key}[{i}]", f"has the {name} {value!r}, no {kind}")
        kinds = {type(e.get("id")) for e in content[key] if isinstance(e, dict)}
        if kinds == {int, str}:
            yield Problem("error", key, "has ids that are numbers and ids that are text")
    if content.get("images") == [] or content.get("categories") == []:
        yield Problem("error", "top", "lists no images, or no categories")


def _annotations(content: Dict[str, Any]) -> Iterator[Problem]:
    for key in LISTS:
        for value, count in Counter(entry["id"] for entry in content[key]).items():
            if count > 1:
                yield Problem("error", f"{key} {value!r}", f"this id is there {count} times")
    for name, count in Counter(c["name"] for c in content["categories"]).items():
        if count > 1:
            yield Problem("warning", f"category '{name}'", f"this name is there {count} times")
    without = masks_missing(content)
    if 0 < without < len(content["annotations"]):
        what = f"{without} of {len(content['annotations'])} have no segmentation: for boxes only"
        yield Problem("warning", "annotations", what)
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        where = f"annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if image is None:
            yield Problem("error", where, f"there is no image {annotation['image_id']!r}")
            continue
        where += f" of {_name(image)}"
        if annotation["category_id"] not in categories:
            what = f"there is no category {annotation['category_id']!r}; there are "
            yield Problem("error", where, what + _some(sorted(categories, key=str)))
        yield from _box(annotation, image, where)
        yield from _mask(annotation, image, where)


def _some(values: List[Any]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


def _box(annotation: Dict[str, Any], image: Dict[str, Any], where: str) -> Iterator[Problem]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        yield Problem("error", where, f"bbox is {box!r}; it must be [x, y, width, height]")
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        yield Problem("warning", where, f"bbox {box} has no area, and is left out")
        return
    width, height = image.get("width"), image.get("height")
    if _is_number(width) and _is_number(height):
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            what = f"bbox {box} is outside of the image ({width} x {height}), and is left out"
            yield Problem("warning", where, what)
        elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            what = f"bbox {box} reaches out of the image ({width} x {height}), and is clipped"
            yield Problem("warning", where, what)


def _mask(annotation: Dict[str, Any], image: Dict[str, Any], where: str) -> Iterator[Problem]:
    mask = annotation.get("segmentation")
    if not mask:  # for Detectron2 there is none, then
        return
    if isinstance(mask, list):
        for polygon in mask:
            numbers = isinstance(polygon, list) and all(map(_is_number, polygon))
            if not numbers or len(polygon) % 2:
                what = "a polygon must be a list of x, y, x, y, ..."
                yield Problem("error", where, what)
            elif len(polygon) < 6:
                what = f"a polygon has {len(polygon) // 2} points, needs 3, and is left out"
                yield Problem("warning", where, what)
    elif isinstance(mask, dict):
        size = [image.get("height"), image.get("width")]
        if not {"size", "counts"} <= set(mask) or mask["size"] != size:
            what = f"the RLE's size is {mask.get('size')}; it must be the image's, {size}"
            yield Problem("error", where, what)
            return
        counts = mask["counts"]
        if isinstance(counts, list):
            whole = all(isinstance(c, int) and c >= 0 for c in counts)
            if not whole or sum(counts) != size[0] * size[1]:
                yield Problem("error", where, "the RLE's counts do not add up to the image")
        elif not isinstance(counts, str) or not _decodes(mask):
            yield Problem("error", where, "the RLE's counts cannot be decoded")
    else:
        yield Problem("error", where, f"segmentation is a {type(mask).__name__}")


def _decodes(rle: Dict[str, Any]) -> bool:
    height, width = rle["size"]
    # pycocotools does not check what it is given before it writes: count the runs first
    total, value, shift, runs = 0, 0, 0, []
    for byte in rle["counts"].encode("latin1", "replace"):
        code = byte - 48
        if not 0 <= code < 64:
            return False
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value |= -1 << shift
            if len(runs) > 2:
                value += runs[-2]
            runs.append(value)
            total += value
            value, shift = 0, 0
    if shift or total != height * width or any(run < 0 for run in runs):
        return False
    return mask_util.decode(rle).shape == (height, width)


def _files(content: Dict[str, Any], root: str) -> Iterator[Problem]:
    present: Dict[str, set] = {}
    inside = os.path.realpath(root) + os.sep
    for image in content["images"]:
        where, name = _name(image), image["file_name"]
        path = os.path.join(root, name)
        if not os.path.realpath(path).startswith(inside):
            yield Problem("error", where, f"is not in the folder of images, '{root}'")
            continue
        folder, base = os.path.split(path)
        if folder not in present:
            found = os.path.isdir(folder)
            present[folder] = set(os.listdir(folder)) if found else set()
        if base not in present[folder]:
            yield Problem("error", where, f"there is no file '{path}'")
        for side in ("width", "height"):
            if not (_is_number(image.get(side)) and image[side] >= 1):
                what = f"{side} is {image.get(side)!r}; it must be the image's, in pixels"
                yield Problem("error", where, what)


def _pixels(image: Dict[str, Any], path: str, where: str) -> Iterator[Problem]:
    try:
        with Image.open(path) as picture:
            picture.load()
            size, mode = picture.size, picture.mode
            rotated = picture.getexif().get(0x0112, 1) >= 5  # stored lying on its side
    except Exception as error:  # decoders raise all kinds
        yield Problem("error", where, f"cannot be read: {error}")
        return
    size = size[::-1] if rotated else size
    said = (image.get("width"), image.get("height"))
    if size != said:
        what = f"is of {size[0]} x {size[1]} pixels; the annotations say {said[0]} x {said[1]}"
        yield Problem("error", where, what)
    if mode not in ("RGB", "L", "P", "CMYK", "YCbCr"):
        what = f"has the mode '{mode}': alpha is dropped, and more than 8 bits are cut off"
        yield Problem("warning", where, what)
    if max(size) > LONGEST * min(size):
        what = f"is of {size[0]} x {size[1]} pixels: too long to leave much at a usual size"
        yield Problem("warning", where, what)


def summary(problems: List[Problem], most: int = 10) -> str:
    """The first of them, one a line, and how many more there are."""
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  and {len(problems) - most} more")
    return "\n".join(lines)
