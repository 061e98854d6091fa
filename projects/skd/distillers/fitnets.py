"""
FitNets: A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from .base import LevelwiseDistiller, adapter
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class FitNets(LevelwiseDistiller):
    """
    The student's map, through a learned regressor r, equals the teacher's: 1/2 (A_T - r(A_S))^2
    (equation 3), here the mean over N, C, H and W instead of the sum.
    """

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level.
        weight: float = number(1.0)

    def make_layers(self, student, teacher):
        return adapter(student, teacher, always=True)

    def level_loss(self, level, student, teacher, boxes):
        loss = F.mse_loss(self.levels[level](student), teacher) / 2
        return {"loss_distill_fitnets": self.settings.weight * loss}
