"""Rows about data, against stock Detectron2: from registration to the records, and the loader."""

import itertools
import os
import tempfile
from argparse import Namespace
from typing import Any, Dict, Iterator, List

from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader

from ...data import register_shapes
from ...runtime.loader import build_train_loader
from .dataset import IMAGES, OBJECTS, coco_size, measure
from .measure import Function, alternate, in_new_process, row

WORKERS = (0, 2, 4)
BATCH, BATCHES = 8, 12  # images of a batch, batches a measurement


def startup_rows(args: Namespace) -> List[Dict[str, Any]]:
    """
    CPU seconds and peak memory of a dataset of a tenth of COCO's size; --full: of COCO's. The check
    without the records, which a test set costs on top, has rows of its own.
    """
    share = 1 if args.full else 10
    with tempfile.TemporaryDirectory() as folder:
        large = os.path.join(folder, "set")
        coco_size(large, IMAGES // share, OBJECTS // share)
        measured = [
            [in_new_process(measure, what, large) for what in ("checked", "detectron2", "check")]
            for _ in range(args.repeats)
        ]
    rows = []
    for key, unit in (("cpu", "s"), ("peak", "MB")):
        for name, side, target in (("startup", 0, 1.1), ("startup_check", 2, None)):
            pairs = [(turn[side][key], turn[1][key]) for turn in measured]
            rows.append(row(f"{name}_{key}", pairs, target, unit=unit))
    return rows


def loader_rows(args: Namespace) -> List[Dict[str, Any]]:
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
