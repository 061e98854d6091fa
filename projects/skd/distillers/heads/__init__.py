"""Losses between what two detectors' heads predict. They know tensors only."""

from .losses import soft_binary_cross_entropy, soft_cross_entropy, weighted_l1
from .settings import HeadsSettings

__all__ = ["HeadsSettings", "soft_binary_cross_entropy", "soft_cross_entropy", "weighted_l1"]
