"""
A dataset as large as COCO's train2017, and what it costs before training: with Detectron2 alone,
with the check in the main process, and the check without loading.
"""

import json
import os
import time
from typing import Dict

import numpy as np
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from ...data import register_coco
from ...data.coco import check_one
from ...data.fit import ModelFacts, check_fit
from ...runtime.memory import peak_resident
from ..common.bench_table import MB

IMAGES, OBJECTS, CLASSES = 118_000, 860_000, 80
POINTS = 24  # of a polygon, as in COCO on average


def coco_size(folder: str, images: int = IMAGES, objects: int = OBJECTS) -> None:
    """Write ``folder/train.json`` and ``folder/images``, whose files are one image's links."""
    os.makedirs(os.path.join(folder, "images"))
    listed = []
    for i in range(images):
        path = os.path.join(folder, "images", f"{i}.jpg")
        if i % 10_000 == 0:  # a file may have 65000 links
            first = path
            Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(first)
        else:
            os.link(first, path)
        listed.append({"id": i + 1, "file_name": f"{i}.jpg", "width": 640, "height": 480})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(CLASSES)]
    with open(os.path.join(folder, "train.json"), "w") as f:
        f.write(
            json.dumps({"images": listed, "categories": categories})[:-1] + ', "annotations": ['
        )
        for i in range(objects):
            f.write((", " if i else "") + json.dumps(_annotation(i, images)))
        f.write("]}")


def _annotation(i: int, images: int) -> dict:
    rng = np.random.default_rng(i % 1000)  # drawing each anew would take minutes
    polygon = (rng.integers(0, 400, 2 * POINTS) + rng.random(2 * POINTS)).round(2)
    x, y = polygon[0::2], polygon[1::2]
    box = [x.min(), y.min(), np.ptp(x), np.ptp(y)]
    return {
        "id": i + 1, "image_id": i % images + 1, "category_id": i % CLASSES + 1, "iscrowd": 0,
        "area": float(box[2] * box[3]), "bbox": [float(v) for v in box],
        "segmentation": [polygon.tolist()],
    }  # fmt: skip


def detectron2(json_file: str, images: str) -> None:
    """What every process of a training does: load, filter, count, and pack the records."""
    register_coco_instances("large", {}, json_file, images)
    _load()


def _load() -> None:
    DatasetFromList(get_detection_dataset_dicts("large"), copy=False)


def checked(json_file: str, images: str) -> None:
    """The same by the main process of this project's training."""
    register_coco("large", json_file, images, check=False)
    check_fit(["large"], [], ModelFacts())
    _load()


def check(json_file: str, images: str) -> None:
    check_one("large", json_file, images)


MEASURES = {"detectron2": detectron2, "checked": checked, "check": check}


def measure(what: str, folder: str) -> Dict[str, float]:
    """One of :data:`MEASURES`, in a process of its own: seconds ``cpu``, MB ``peak``."""
    before = time.process_time()
    MEASURES[what](os.path.join(folder, "train.json"), os.path.join(folder, "images"))
    return {"cpu": time.process_time() - before, "peak": peak_resident() / MB}
