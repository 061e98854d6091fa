"""
MGD: Z. Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv 2205.01529.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from .base import StagewiseDistiller, adapter
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number, whole


@DISTILLER_REGISTRY.register()
class MGD(StagewiseDistiller):
    """
    The teacher's map is generated from the student's with random positions blanked: the sum of
    (A_T - conv3x3(ReLU(conv3x3(mask * align(A_S)))))^2 (equations 3 to 5), divided by N.

    As in the authors' code; ``num_levels`` says of which levels, as their configs do.
    """

    # alpha and lambda of the paper, section 4.2; levels of the authors' configs: P2-P5 and P3-P7
    two_stage = {"weight": 5e-7, "masked": 0.45, "num_levels": 4}
    one_stage = {"weight": 2e-5, "masked": 0.65, "num_levels": 5}

    @dataclass(frozen=True)
    class Settings(Settings):
        """None: the authors', for one- or two-stage detectors."""

        # Times the loss at each level.
        weight: Optional[float] = number(None)
        # The share of positions that are blanked.
        masked: Optional[float] = number(None, below=1)
        # How many of the levels are distilled, the finest first.
        num_levels: Optional[int] = whole(None)

    def make_layers(self, student, teacher):
        layers = {
            "align": adapter(student, teacher),
            "generate": nn.Sequential(
                nn.Conv2d(teacher.channels, teacher.channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(teacher.channels, teacher.channels, 3, padding=1),
            ),
        }
        return nn.ModuleDict(layers)

    def level_loss(self, level, student, teacher, boxes):
        layers = self.levels[level]
        n, _, h, w = student.shape
        keep = torch.rand(n, 1, h, w, device=student.device) >= self.settings.masked
        generated = layers["generate"](layers["align"](student) * keep)
        loss = (generated - teacher).square().sum() / n
        return {"loss_distill_mgd": self.settings.weight * loss}
