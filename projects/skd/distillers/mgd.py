"""
MGD: Z. Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv 2205.01529.
"""

from typing import Optional

import torch
from detectron2.config import configurable
from torch import nn

from .base import DISTILLER_REGISTRY, LevelwiseDistiller, adapter, is_two_stage
from .checks import check_number

# alpha and lambda of the paper, section 4.2
TWO_STAGE = (5e-7, 0.45)
ONE_STAGE = (2e-5, 0.65)


@DISTILLER_REGISTRY.register()
class MGD(LevelwiseDistiller):
    """
    The teacher's map is generated from the student's with random positions blanked: the sum of
    (A_T - conv3x3(ReLU(conv3x3(mask * align(A_S)))))^2 (equations 3 to 5), divided by N.
    """

    @configurable
    def __init__(self, *, weight: Optional[float] = None, masked: Optional[float] = None):
        """
        Args:
            weight: None for the paper's, by one- or two-stage detector.
            masked: the share of positions that are blanked; None as above.
        """
        super().__init__()
        if weight is not None:
            check_number("MGD.WEIGHT", weight)
        if masked is not None:
            check_number("MGD.MASKED", masked, below=1)
        self.weight = weight
        self.masked = masked

    def bind(self, shapes):
        weight, masked = TWO_STAGE if is_two_stage(shapes) else ONE_STAGE
        self.weight = weight if self.weight is None else self.weight
        self.masked = masked if self.masked is None else self.masked
        super().bind(shapes)

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
        keep = torch.rand(n, 1, h, w, device=student.device) >= self.masked
        generated = layers["generate"](layers["align"](student) * keep)
        loss = (generated - teacher).square().sum() / n
        return {"loss_distill_mgd": self.weight * loss}
