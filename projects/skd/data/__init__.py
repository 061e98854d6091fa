from .coco import check_classes, check_classes_lazy, lazy_datasets, register_coco, thing_classes
from .shapes import SHAPES_CLASSES, register_shapes

__all__ = [
    "SHAPES_CLASSES",
    "check_classes",
    "check_classes_lazy",
    "lazy_datasets",
    "register_coco",
    "register_shapes",
    "thing_classes",
]
