"""
PKD: W. Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022, arXiv 2207.02039.
"""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F

from .base import StagewiseDistiller, adapter
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number, whole


@DISTILLER_REGISTRY.register()
class PKD(StagewiseDistiller):
    """
    Half the mean squared difference of the maps after each channel of both was brought to mean 0
    and variance 1 over batch and positions (equations 3 to 5): one minus Pearson's correlation.

    As in the authors' code, but that a constant channel has a finite gradient; ``num_levels`` says
    of which levels, as their configs do.
    """

    # the authors' configs: P2-P5 and P3-P6
    two_stage = {"weight": 6.0, "num_levels": 4}
    one_stage = {"weight": 10.0, "num_levels": 4}

    @dataclass(frozen=True)
    class Settings(Settings):
        """None: the authors', for one- or two-stage detectors."""

        # Times the loss at each level.
        weight: Optional[float] = number(None)
        # How many of the levels are distilled, the finest first.
        num_levels: Optional[int] = whole(None)

    def make_layers(self, student, teacher):
        return adapter(student, teacher)

    def level_loss(self, level, student, teacher, boxes):
        loss = F.mse_loss(_standardize(self.levels[level](student)), _standardize(teacher)) / 2
        return {"loss_distill_pkd": self.settings.weight * loss}


def _standardize(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> the same, each channel of mean 0 and variance 1 over N, H and W."""
    x = x - x.mean((0, 2, 3), keepdim=True)
    count = x.numel() // x.shape[1]
    variance = x.square().sum((0, 2, 3), keepdim=True) / max(count - 1, 1)
    # a constant channel would have an infinite gradient at the root
    return x / (variance.clamp(min=1e-24).sqrt() + 1e-6)
