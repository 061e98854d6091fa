"""
Detectron2's records of a checked dataset, made of what the check has parsed.

Detectron2's loader would parse the file again, which is half of its time. What comes out is equal
to what ``load_coco_json`` gives (detectron2/data/datasets/coco.py), and a test holds it to that.
"""

import logging
import os
from typing import Any, Dict, List, Tuple

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from .reading import without_gc

logger = logging.getLogger(__name__)
Record = Dict[str, Any]
Index = Dict[Any, int]  # from a category's id to its place among the classes
# of this process, by the dataset's name, from its check until they are loaded
_KEPT: Dict[str, Tuple[List[Record], Index]] = {}


def keep(name: str, content: Dict[str, Any], image_root: str) -> None:
    """
    Keep the records of a dataset for :func:`take`.

    Args:
        name: of the dataset.
        content: of a COCO file, checked and mended. Its lists become the records'.
        image_root: the folder the images' ``file_name`` starts from.
    """
    with without_gc():
        _KEPT[name] = make_records(content, image_root), class_index(content)


def take(name: str) -> List[Record]:
    """
    The records, once (their reader packs them, and they are several times as large as the file).
    Sets the metadata that ``load_coco_json`` sets.
    """
    records, index = _KEPT.pop(name)
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = index
    logger.info(f"Loaded {len(records)} images of dataset '{name}', as checked.")
    return records


def kept(name: str) -> bool:
    """Whether there is something for :func:`take`."""
    return name in _KEPT


def drop(name: str) -> None:
    """Forget what is kept of an earlier check."""
    _KEPT.pop(name, None)


def class_index(content: Dict[str, Any]) -> Index:
    """Places of the classes by category id, as Detectron2 numbers them: in the order of the ids."""
    ids = sorted(category["id"] for category in content["categories"])
    return {value: i for i, value in enumerate(ids)}


def make_records(content: Dict[str, Any], image_root: str) -> List[Record]:
    """
    Args:
        content, image_root: see :func:`keep`.

    Returns:
        What ``load_coco_json`` gives, sorted by the images' ids.
    """
    index = class_index(content)
    objects: Dict[Any, List[Record]] = {image["id"]: [] for image in content["images"]}
    for annotation in content.get("annotations", ()):
        objects[annotation["image_id"]].append(_object(annotation, index))
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _object(annotation: Dict[str, Any], index: Index) -> Record:
    made = {
        "iscrowd": annotation["iscrowd"],
        "bbox": annotation["bbox"],
        "category_id": index[annotation["category_id"]],
        "bbox_mode": BoxMode.XYWH_ABS,
    }
    mask = annotation.get("segmentation")
    if mask:
        if type(mask) is dict and type(mask["counts"]) is list:
            mask = mask_util.frPyObjects(mask, *mask["size"])
        made["segmentation"] = mask
    if "keypoints" in annotation:  # pixels' indices become their centers
        points = annotation["keypoints"]
        made["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(points)]
    return made
