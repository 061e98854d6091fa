"""What the heads of an R-CNN's proposals share."""

from typing import List

from torch import nn

from .base import submodule

ROI = "roi_heads"


def roi_heads(student: nn.Module, teacher: nn.Module, *attributes: str) -> List[nn.Module]:
    """
    Both detectors' ``roi_heads``.

    Args:
        attributes: that they must have.

    Raises:
        Unfit: one has none, or none of these attributes.
    """
    return [
        submodule(d, ROI, whose, *attributes)
        for d, whose in ((student, "student"), (teacher, "teacher"))
    ]
