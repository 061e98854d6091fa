"""How well a detector finds a dataset's objects, whatever class it gives them."""

import contextlib
import copy
import io
import math
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from .generalization import plain_name


class Quality(NamedTuple):
    """
    ap50: box AP at IoU 0.5, 0 to 100, whatever class a box is given.
    ap: the same, mean over IoU 0.5 to 0.95.
    best_score: the highest score of any detection; an untrained detector is sure of nothing.
    """

    ap50: float
    ap: float
    best_score: float


@torch.no_grad()
def detect(
    model: nn.Module, inputs: Iterable[Dict[str, Any]], flip: bool = False
) -> List[Dict[str, Any]]:
    """
    Detections in COCO's format, all of category 1.

    Args:
        model: a detector in eval mode.
        inputs: Detectron2's standard inputs, with ``image_id``; read one by one.
        flip: swap the images' first and third channel.
    """
    found = []
    for x in inputs:
        image = x["image"].flip(0) if flip else x["image"]
        instances = model([{**x, "image": image}])[0]["instances"].to("cpu")
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        for box, score in zip(boxes.tolist(), instances.scores.tolist()):
            found.append({"image_id": x["image_id"], "category_id": 1, "bbox": box, "score": score})
    return found


def class_agnostic_quality(
    detections: List[Dict[str, Any]], records: List[Dict[str, Any]]
) -> Quality:
    """
    Args:
        detections: of :func:`detect`.
        records: Detectron2's dataset dicts of the same images.

    Returns:
        nan for both AP where the images have no object that counts, as in a test set whose
        annotations are kept back.
    """
    best = max((d["score"] for d in detections), default=0.0)
    content = _ground_truth(records)
    if all(a["iscrowd"] for a in content["annotations"]):
        return Quality(math.nan, math.nan, best)
    if not detections:
        return Quality(0.0, 0.0, best)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = (max(0.0, 100 * float(x)) for x in evaluation.stats[:2])
    return Quality(ap50, ap, best)


def _ground_truth(records: List[Dict[str, Any]]) -> Dict[str, Any]:
    annotations = []
    for record in records:
        for obj in record.get("annotations", ()):
            box = BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYWH_ABS)
            crowd = int(obj.get("iscrowd", 0))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": record["image_id"], "category_id": 1,
                    "bbox": box, "area": box[2] * box[3], "iscrowd": crowd,
                }
            )  # fmt: skip
    images = [{"id": r["image_id"], "height": r["height"], "width": r["width"]} for r in records]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "any"}]}


def unseen_classes(dataset: str, teachers: Sequence[str]) -> Optional[List[str]]:
    """
    Classes of a dataset that a teacher was not trained on.

    Args:
        dataset: a registered dataset that was loaded.
        teachers: names of the datasets the teacher was trained on.

    Returns:
        The names; None where the teacher's datasets, or their classes' names, are unknown here.
    """
    if dataset in teachers:
        return []
    known = [_classes(name) for name in teachers]
    if not known or not all(known):
        return None
    seen = {plain_name(name) for names in known for name in names}
    return [name for name in _classes(dataset) if plain_name(name) not in seen]


def _classes(dataset: str) -> Sequence[str]:
    if dataset not in DatasetCatalog:
        return ()
    return MetadataCatalog.get(dataset).get("thing_classes", ())
