"""
From which of its maps a two-stage teacher reads an object's class. Detectron2's poolers take the
map by the box's size, the finest for all boxes below 112 pixels, so that in small images the
coarser maps serve the proposals alone, and hold little of what a one-stage student needs there.
"""

from typing import Any, Dict, List, Sequence

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes, BoxMode
from torch import nn

MOST = 0.5  # of the objects


def pooled_notes(
    teacher: nn.Module,
    inputs: Sequence[Dict[str, Any]],
    records: Sequence[Dict[str, Any]],
    distilled: Sequence[str],
) -> List[str]:
    """
    Args:
        inputs: Detectron2's standard inputs, in the size that the teacher sees.
        records: Detectron2's dataset dicts of the same images.
        distilled: the teacher's maps that are.

    Returns:
        A note, if most objects are read from maps that are not distilled.
    """
    heads = getattr(teacher, "roi_heads", None)
    pooler, names = (getattr(heads, key, None) for key in ("box_pooler", "box_in_features"))
    if not distilled or not isinstance(pooler, ROIPooler) or len(names or ()) < 2:
        return []
    boxes = [_boxes(*both) for both in zip(inputs, records)]
    levels = assign_boxes_to_levels(
        boxes, pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
    read = torch.bincount(levels, minlength=len(names)).tolist()
    elsewhere = {name: n for name, n in zip(names, read) if n and name not in distilled}
    part = sum(elsewhere.values()) / max(1, len(levels))
    if part <= MOST:
        return []
    return [
        f"the teacher's box head reads {part:.0%} of your objects from {', '.join(elsewhere)}, "
        f"which is not distilled: {', '.join(distilled)} serve its proposals, and hold little of "
        "classes. A one-stage student may end below its baseline by it: take a teacher of its kind."
    ]


def _boxes(inputs: Dict[str, Any], record: Dict[str, Any]) -> Boxes:
    """Of an image's objects, in pixels of the input."""
    scale = inputs["image"].shape[-1] / record["width"]
    found = [
        BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYXY_ABS)
        for x in record["annotations"]
        if not x.get("iscrowd", 0)
    ]
    return Boxes(scale * torch.tensor(found, dtype=torch.float32).reshape(-1, 4))
