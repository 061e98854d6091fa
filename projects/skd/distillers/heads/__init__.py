"""
Losses between what two detectors' heads predict. They know tensors only.

    losses.py    a loss a function
    settings.py  the keys of a config
"""

from .losses import (
    EPSILON,
    giou_distance,
    quality_focal,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    weighted_l1,
)
from .settings import HeadsSettings

__all__ = [
    "EPSILON",
    "HeadsSettings",
    "giou_distance",
    "quality_focal",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "weighted_l1",
]
