from .coco import register_coco
from .fit import check_datasets, thing_classes
from .shapes import SHAPES_CLASSES
from .shapes_catalog import register_shapes

__all__ = [
    "SHAPES_CLASSES",
    "check_datasets",
    "register_coco",
    "register_shapes",
    "thing_classes",
]
