"""
From which of its maps a two-stage teacher reads an object's class. Detectron2's poolers take the
map by the box's size, the finest for all boxes below 112 pixels, so that in small images the
coarser maps serve the proposals alone.
"""

from typing import Any, Dict, List, Sequence

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes, BoxMode
from torch import nn

from ...config.naming import called

MOST = 0.5  # of the objects


def pooled_notes(
    teacher: nn.Module,
    inputs: Sequence[Dict[str, Any]],
    records: Sequence[Dict[str, Any]],
    distilled: Sequence[str],
    half_size: bool = False,
) -> List[str]:
    """
    Args:
        inputs: Detectron2's standard inputs.
        records: Detectron2's dataset dicts of the same images.
        distilled: the teacher's maps that are; empty if not known, and then there is no note.
        half_size: the teacher sees the inputs at half their width and height.

    Returns:
        A note, if most objects are read from maps that are not distilled.
    """
    heads = getattr(teacher, "roi_heads", None)
    pooler, names = (getattr(heads, key, None) for key in ("box_pooler", "box_in_features"))
    if not distilled or not isinstance(pooler, ROIPooler) or len(names or ()) < 2:
        return []
    boxes = [_boxes(*both, 0.5 if half_size else 1.0) for both in zip(inputs, records)]
    if not boxes:
        return []
    levels = assign_boxes_to_levels(
        boxes, pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
    read = torch.bincount(levels, minlength=len(names)).tolist()
    elsewhere = {name: n for name, n in zip(names, read) if n and name not in distilled}
    part = sum(elsewhere.values()) / max(1, len(levels))
    if part <= MOST:
        return []
    others = ", ".join(elsewhere)
    return [
        f"the teacher's box head reads {part:.0%} of your objects from {others}, which is not "
        f"distilled: for these {', '.join(distilled)} serve the proposals alone. A RetinaNet "
        "gained less by such a teacher than by a weaker RetinaNet (docs/choosing_a_teacher.md). "
        f"A student that has {others} can distil that, too ({called('MODEL.DISTILLER.LEVELS')})."
    ]


def _boxes(inputs: Dict[str, Any], record: Dict[str, Any], factor: float) -> Boxes:
    """Of an image's objects, in pixels of the input times ``factor``."""
    height, width = inputs["image"].shape[-2:]
    found = [
        BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYXY_ABS)
        for x in record["annotations"]
        if not x.get("iscrowd", 0)
    ]
    boxes = Boxes(torch.tensor(found, dtype=torch.float32).reshape(-1, 4))
    # the image's own size, which the mapper notes where the record has none
    own = inputs.get("width", width), inputs.get("height", height)
    boxes.scale(factor * width / own[0], factor * height / own[1])
    return boxes
