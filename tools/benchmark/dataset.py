#!/usr/bin/env python
"""
What a dataset as large as COCO's train2017 costs before training: with Detectron2 alone, with
the check in the main process, and the check without loading. CPU seconds and peak memory, each in
a process of its own.

    python tools/benchmark/dataset.py FOLDER      # about 1 GB, made on first use
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
from PIL import Image

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
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("large", {}, json_file, images)
    _load()


def _load() -> None:
    from detectron2.data import DatasetFromList, get_detection_dataset_dicts

    DatasetFromList(get_detection_dataset_dicts("large"), copy=False)


def checked(json_file: str, images: str) -> None:
    """The same by the main process of this project's training."""
    from skd.data import register_coco
    from skd.data.fit import Model, check_fit

    register_coco("large", json_file, images, check=False)
    check_fit(["large"], [], Model())
    _load()


def check(json_file: str, images: str) -> None:
    from skd.data.coco import check_one

    check_one("large", json_file, images)


MEASURES = {"detectron2": detectron2, "checked": checked, "check": check}


def _measure(what: str, folder: str, as_json: bool) -> None:
    files = os.path.join(folder, "train.json"), os.path.join(folder, "images")
    import skd.data  # noqa: F401: not to be counted

    start, before = time.perf_counter(), time.process_time()
    MEASURES[what](*files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu, wall = time.process_time() - before, time.perf_counter() - start
    if as_json:
        print(json.dumps({"cpu": cpu, "wall": wall, "peak": 1024 * peak}))
    else:
        print(f"{what}: {cpu:.1f} s of CPU, {wall:.1f} s, peak {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="where the dataset is, or is made")
    parser.add_argument("--only", choices=tuple(MEASURES), help="measure in this process")
    parser.add_argument("--json", action="store_true", help="with --only: seconds and MB")
    args = parser.parse_args()
    if not os.path.exists(args.folder):
        coco_size(args.folder)
    if args.only:
        return _measure(args.only, args.folder, args.json)
    for what in MEASURES:
        command = [sys.executable, "-W", "ignore", __file__, args.folder, "--only", what]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
