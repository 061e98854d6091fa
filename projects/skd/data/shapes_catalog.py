"""
Makes the built-in dataset known to Detectron2. The files are drawn on first use and kept below
``$DETECTRON2_DATASETS/skd_shapes`` like those of any Detectron2 dataset (below ``datasets/`` where
that folder cannot be written).
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .shapes import SHAPES_CLASSES, SPLITS, shapes_root


def register_shapes() -> None:
    """Register all splits with Detectron2's catalogs. Nothing is drawn before first use."""
    for split in SPLITS:
        if split in DatasetCatalog:
            continue
        folder = os.path.join(shapes_root(), split)
        json_file = os.path.join(folder, "annotations.json")
        images = os.path.join(folder, "images")

        def load(split=split, folder=folder, json_file=json_file, images=images):
            from .draw_shapes import write_split  # with OpenCV, which ``import skd`` does not need

            write_split(split, folder)
            return load_coco_json(json_file, images, split)

        # register_coco_instances, but drawn before it is read
        DatasetCatalog.register(split, load)
        MetadataCatalog.get(split).set(
            json_file=json_file,
            image_root=images,
            evaluator_type="coco",
            thing_classes=list(SHAPES_CLASSES),
        )
