"""What a teacher finds on the student's own images, as it is configured and otherwise."""

import contextlib
import copy
import io
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

# Normalisations in use, as (mean, std) in the order of the image's channels.
NORMALIZATIONS: Dict[str, Tuple[Sequence[float], Sequence[float]]] = {
    "Caffe2's, BGR": ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "torchvision's, BGR": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    "torchvision's, RGB": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "to [-1, 1]": ((127.5,) * 3, (127.5,) * 3),
    "to [0, 1]": ((0.0,) * 3, (255.0,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


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
def find(
    model: nn.Module, inputs: List[Dict[str, Any]], flip: bool = False
) -> List[Dict[str, Any]]:
    """
    Detections in COCO's format, all of category 1.

    Args:
        model: a detector in eval mode.
        inputs: Detectron2's standard inputs, with ``image_id``.
        flip: swap the channels of the images first and third.
    """
    found = []
    for x in inputs:
        image = x["image"].flip(0) if flip else x["image"]
        instances = model([{**x, "image": image}])[0]["instances"].to("cpu")
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        for box, score in zip(boxes.tolist(), instances.scores.tolist()):
            found.append({"image_id": x["image_id"], "category_id": 1, "bbox": box, "score": score})
    return found


def quality(detections: List[Dict[str, Any]], records: List[Dict[str, Any]]) -> Quality:
    """
    Args:
        detections: of :func:`find`.
        records: Detectron2's dataset dicts of the same images.
    """
    best = max((d["score"] for d in detections), default=0.0)
    if not detections:
        return Quality(0.0, 0.0, best)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _ground_truth(records)
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
        for obj in record["annotations"]:
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


@contextlib.contextmanager
def normalized(model: nn.Module, mean: Sequence[float], std: Sequence[float]):
    """Within, a detector normalises its images with another mean and standard deviation."""
    before = model.pixel_mean.clone(), model.pixel_std.clone()
    try:
        for buffer, values in ((model.pixel_mean, mean), (model.pixel_std, std)):
            buffer.copy_(torch.tensor(values).view_as(buffer))
        yield
    finally:
        model.pixel_mean.copy_(before[0])
        model.pixel_std.copy_(before[1])
