"""
What of a dataset a model is compared with: its classes, objects, masks and keypoints.

The counterpart of ``model_facts.py``.
"""

from itertools import chain
from typing import Any, Dict, FrozenSet, Iterable, List, NamedTuple, Tuple

import numpy as np

from ..runtime.words import shown
from . import records
from .annotations import masks_missing
from .clean import LEAST


class DatasetFacts(NamedTuple):
    """
    What is known of a dataset that was checked and mended.

    Attributes:
        source: the user's file.
        json_file: the same, or its mended copy.
        classes: names in Detectron2's order.
        annotated: whether there is a list of annotations at all.
        objects: annotations in the file, by class.
        usable: those of them that a training's loader keeps, by class.
        masks: annotations that are no crowds and have a mask.
        rles: masks among them that are RLE.
        without_mask: annotations that are no crowds and have none.
        keypoint_names: of the categories, if all agree.
        keypoints: numbers of keypoints of the annotations.
        options: of :func:`skd.data.coco.check_one`, to do the same on a machine that does not see
            the copy.
        files: of its images, to be compared with another's; not told to other processes.
    """

    source: str
    json_file: str
    classes: Tuple[str, ...]
    annotated: bool
    objects: Tuple[int, ...]
    usable: Tuple[int, ...]
    masks: int
    rles: int
    without_mask: int
    keypoint_names: Tuple[str, ...]
    keypoints: Tuple[int, ...]
    options: Dict[str, Any]
    files: FrozenSet[str] = frozenset()


def names_of(content: Dict[str, Any]) -> List[str]:
    """Names of the classes, in Detectron2's order: by id."""
    return [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]


def facts_of(content: Dict[str, Any], json_file: str) -> DatasetFacts:
    """
    Args:
        content: of a COCO file, checked and mended.
        json_file: where it was read from.
    """
    annotations = content.get("annotations", [])
    index = records.class_index(content)
    classes = np.array([index[a["category_id"]] for a in annotations], dtype=np.int64)
    crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
    keep = ~crowd & _boxes_with_area(content)

    def by_class(which) -> Tuple[int, ...]:
        return tuple(np.bincount(classes[which], minlength=len(index)).tolist())

    masks = [a["segmentation"] for a in annotations if not a["iscrowd"] and a.get("segmentation")]
    points = [len(a.get("keypoints", ())) // 3 for a in annotations if not a["iscrowd"]]
    return DatasetFacts(
        source=json_file,
        json_file=json_file,
        classes=tuple(names_of(content)),
        annotated="annotations" in content,
        objects=by_class(slice(None)),
        usable=by_class(keep),
        masks=len(masks),
        rles=sum(isinstance(mask, dict) for mask in masks),
        without_mask=masks_missing(content)[0],
        keypoint_names=category_keypoints(content),
        keypoints=tuple(sorted(set(points) - {0})),
        options={},
    )


def what_reaches(checked: DatasetFacts) -> str:
    """How many of the objects a training's loader keeps, by class, in words."""
    usable, objects = sum(checked.usable), sum(checked.objects)
    pairs = list(zip(checked.classes, checked.usable, checked.objects))
    fewer = [pair for pair in pairs if pair[1] < pair[2]]
    listed = ", ".join(f"{shown([c])} {n} of {m}" for c, n, m in (fewer or pairs)[:20])
    more = ", ..." if len(fewer or pairs) > 20 else ""
    why = "; crowds, 'ignore' and objects without area are left out" if fewer else ""
    return f"{usable} of {objects} objects reach the model{why} ({listed}{more})"


def _boxes_with_area(content: Dict[str, Any]) -> np.ndarray:
    """Which boxes have an area once they are clipped to the image: bool (annotations,)."""
    annotations = content.get("annotations", [])
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = _table((a["bbox"] for a in annotations), 4)
    limits = _table((sizes[a["image_id"]] for a in annotations), 2)
    low = boxes[:, :2].clip(min=0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], limits)
    return (high - low > LEAST).all(1)


def _table(rows: Iterable[Iterable[float]], columns: int) -> np.ndarray:
    # of millions of rows, in a fraction of the time of np.array
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64).reshape(-1, columns)


def category_keypoints(content: Dict[str, Any]) -> Tuple[str, ...]:
    """Names of the keypoints of a file's categories, if all agree."""
    found = [c["keypoints"] for c in content["categories"] if c.get("keypoints")]
    good = all(
        isinstance(names, list) and all(isinstance(n, str) for n in names) for names in found
    )
    return tuple(found[0]) if found and good and found.count(found[0]) == len(found) else ()
