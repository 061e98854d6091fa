"""What the heads of an R-CNN's proposals share."""

from typing import List

from torch import nn

from .base import Unfit, submodule

ROI = "roi_heads"


def roi_heads(student: nn.Module, teacher: nn.Module, *attributes: str) -> List[nn.Module]:
    """
    Both detectors' ``roi_heads``.

    Args:
        attributes: that they must have.

    Raises:
        Unfit: one has none, or none of these attributes, or several stages.
    """
    found = [
        submodule(d, ROI, whose, *attributes)
        for d, whose in ((student, "student"), (teacher, "teacher"))
    ]
    for heads in found:
        if isinstance(getattr(heads, "box_predictor", None), nn.ModuleList):
            raise Unfit(f"{type(heads).__name__} has several stages, each with boxes of its own")
    return found
