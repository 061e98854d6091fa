"""
Attention transfer: S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention", ICLR 2017,
arXiv 1612.03928.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .base import LevelwiseDistiller
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class AT(LevelwiseDistiller):
    """
    Equal activation-based attention: with Q = vec(mean of A^2 over channels), the mean over N and
    positions of (Q_S/|Q_S| - Q_T/|Q_T|)^2 (equation 2, as the authors' code reduces it). Has no
    learned layer, and any numbers of channels.
    """

    compares_maps = False

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level: the authors' beta, for classification.
        weight: float = number(1000.0)

    def level_loss(self, level, student, teacher, boxes):
        difference = _attention(student) - _attention(teacher)
        return {"loss_distill_at": self.settings.weight * difference.square().mean()}


def _attention(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, H*W), of unit length."""
    return F.normalize(x.square().mean(1).flatten(1))
