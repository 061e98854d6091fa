"""
Similarity preserving: F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019,
arXiv 1907.09682.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .base import LevelwiseDistiller
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class SP(LevelwiseDistiller):
    """
    Images alike to the teacher are alike to the student: with Q the maps as a matrix (N, C*H*W) and
    G = Q Q^T with rows of unit length, |G_T - G_S|_F^2 / N^2 (equations 1 to 4). Of a single image
    per process there is nothing to learn.
    """

    compares_maps = False

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level: the authors' gamma, for classification.
        weight: float = number(3000.0)

    def level_loss(self, level, student, teacher, boxes):
        difference = _similarity(teacher) - _similarity(student)
        return {"loss_distill_sp": self.settings.weight * difference.square().mean()}


def _similarity(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, N)."""
    x = x.flatten(1)
    return F.normalize(x @ x.t())
