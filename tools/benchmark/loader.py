"""Rows about data, against stock Detectron2: from registration to the records, and the loader."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterator, List

from dataset import IMAGES, OBJECTS, coco_size
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from measure import Function, alternate, row

from skd.data import register_shapes
from skd.runtime.loader import build_train_loader

WORKERS = (0, 2, 4)
BATCH, BATCHES = 8, 12  # images of a batch, batches a measurement


def startup_rows(args) -> List[Dict[str, Any]]:
    """CPU seconds and peak memory of a dataset of a tenth of COCO's size; --full: of COCO's."""
    share = 1 if args.full else 10
    with tempfile.TemporaryDirectory() as folder:
        large = os.path.join(folder, "set")
        coco_size(large, IMAGES // share, OBJECTS // share)
        pairs = [(_measured("checked", large), _measured("detectron2", large))
                 for _ in range(args.repeats)]  # fmt: skip
    rows = []
    for key, unit in (("cpu", "s"), ("peak", "MB")):
        sides = [(checked[key], stock[key]) for checked, stock in pairs]
        rows.append(row(f"startup_{key}", sides, 1.1, unit=unit))
    return rows


def _measured(what: str, folder: str) -> Dict[str, float]:
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dataset.py")
    command = [sys.executable, "-W", "ignore", script, folder, "--only", what, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def loader_rows(args) -> List[Dict[str, Any]]:
    """Seconds of the same batches of the built-in dataset, after the workers have started."""
    register_shapes()
    rows = []
    for workers in WORKERS:
        cfg = _config(workers)
        sides = iter(build_train_loader(cfg)), iter(build_detection_train_loader(cfg))
        take = [_take(side) for side in sides]
        alternate(take, 1, "cpu")
        pairs = alternate(take, args.repeats + 2, "cpu")
        speed = [BATCH * BATCHES / min(side) for side in zip(*pairs)]
        images = dict(zip(("images_per_s", "images_per_s_reference"), speed))
        rows.append(row(f"loader_{workers}_workers", pairs, 1.1, unit="s", **images))
    return rows


def _take(loader: Iterator[Any]) -> Function:
    return lambda: list(itertools.islice(loader, BATCHES))


def _config(workers: int) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("skd_shapes_train",)
    cfg.SOLVER.IMS_PER_BATCH = BATCH
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (256,), 512
    cfg.SEED = 1
    return cfg
