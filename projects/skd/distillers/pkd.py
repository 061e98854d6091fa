"""
PKD: W. Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022, arXiv 2207.02039.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable

from .base import DISTILLER_REGISTRY, LevelwiseDistiller, adapter, is_two_stage
from .checks import check_number

TWO_STAGE, ONE_STAGE = 6.0, 10.0  # the authors' configs


@DISTILLER_REGISTRY.register()
class PKD(LevelwiseDistiller):
    """
    Half the mean squared difference of the maps after each channel of both was brought to mean 0
    and variance 1 over batch and positions (equations 3 to 5): one minus Pearson's correlation.
    """

    @configurable
    def __init__(self, *, weight: Optional[float] = None):
        """A weight of None is the authors', for one- or two-stage detectors."""
        super().__init__()
        if weight is not None:
            check_number("PKD.WEIGHT", weight)
        self.weight = weight

    def bind(self, shapes):
        if self.weight is None:
            self.weight = TWO_STAGE if is_two_stage(shapes) else ONE_STAGE
        super().bind(shapes)

    def make_layers(self, student, teacher):
        return adapter(student, teacher)

    def level_loss(self, level, student, teacher, boxes):
        loss = F.mse_loss(_standardize(self.levels[level](student)), _standardize(teacher)) / 2
        return {"loss_distill_pkd": self.weight * loss}


def _standardize(x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean((0, 2, 3), keepdim=True)
    count = x.numel() // x.shape[1]
    variance = x.square().sum((0, 2, 3), keepdim=True) / max(count - 1, 1)
    # a constant channel would have an infinite gradient at the root
    return x / (variance.clamp(min=1e-24).sqrt() + 1e-6)
