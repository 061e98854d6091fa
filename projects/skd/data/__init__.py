"""
Datasets: the built-in one, and one's own in COCO's format, checked and mended before a run.

    coco.py            register_coco; a dataset is checked, mended and handed to Detectron2
    check.py           all that is wrong with a dataset: reading, mending, annotations, images
    reading.py         a JSON file, and whether it is one of COCO's format
    mend.py            what can be meant in one way only is mended
    annotations.py     what is wrong with boxes, masks, references, keypoints
    clean.py           the annotations that need no closer look, many at a time
    box_forms.py       boxes that are corners, or parts of the image
    images.py          what is wrong with image files
    problems.py        what a check finds, and how it is told
    records.py         Detectron2's records, from what the check has parsed

    fit.py             whether the datasets of a config fit its model, and each other
    dataset_facts.py   what of a dataset has to fit a model
    model_facts.py     what of a model has to fit a dataset
    keypoints.py       the same for keypoints
    mirror.py          which keypoints swap when an image is mirrored

    split.py           a part of a dataset
    unlabelled.py      images without labels
    shapes.py          the built-in dataset's splits and classes
    shapes_catalog.py  its registration
    draw_shapes.py     its images
"""

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
