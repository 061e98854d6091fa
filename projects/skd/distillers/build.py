"""The registry of methods, and what a method has to be."""

from typing import Dict, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

DISTILLER_REGISTRY = Registry("DISTILLER")
DISTILLER_REGISTRY.__doc__ = """
Distillation methods: subclasses of :class:`Distiller`, named by ``MODEL.DISTILLER.NAME``. Each is
called with the config.
"""


class Distiller(nn.Module):
    """
    A distillation loss over pairs of feature maps.

    A method implements :meth:`bind`, which makes its parameters once the shapes are known, and
    :meth:`forward`. All its parameters must get a gradient in every step, because data-parallel
    training does not look for unused ones.
    """

    def bind(self, shapes: Dict[str, Tuple[ShapeSpec, ShapeSpec]]) -> None:
        """
        Make the layers that depend on shapes. Called once, before training.

        Args:
            shapes: channels and stride of the student's and the teacher's map, by level name,
                finest level first. Strides are equal within a pair.
        """
        raise NotImplementedError

    def forward(
        self, student: Dict[str, torch.Tensor], teacher: Dict[str, torch.Tensor]
    ) -> Dict[str, Dict[str, torch.Tensor]]:
        """
        Args:
            student, teacher: feature maps (N, C, H, W) by level name, with the same N, H and W
                at each level. The teacher's need no gradient.

        Returns:
            For each term of the loss, named ``loss_distill_*``, its weighted value (a scalar) at
            each level. Their sum is added to the student's own loss.
        """
        raise NotImplementedError


def build_distiller(cfg: CfgNode) -> Distiller:
    """Build the method ``MODEL.DISTILLER.NAME``."""
    name = cfg.MODEL.DISTILLER.NAME
    if name not in DISTILLER_REGISTRY:
        raise ValueError(
            f"Unknown method '{name}' (MODEL.DISTILLER.NAME). "
            f"Known: {', '.join(sorted(k for k, _ in DISTILLER_REGISTRY))}."
        )
    return DISTILLER_REGISTRY.get(name)(cfg)
