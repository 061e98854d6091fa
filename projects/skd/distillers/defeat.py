"""
DeFeat: J. Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021,
arXiv 2103.14475.
"""

import math

import torch
from detectron2.config import configurable
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import nn

from .base import DISTILLER_REGISTRY, LevelwiseDistiller
from .boxes import fill_boxes
from .checks import check_number


@DISTILLER_REGISTRY.register()
class DeFeat(LevelwiseDistiller):
    """
    Squared differences to the teacher within the objects' boxes and outside of them, each divided
    by 2 N, the number of its entries, with weights of their own (equation 4); averaged over levels
    as in the authors' code, after a 3x3 convolution. A box belongs to the level a box head pools
    it from.

    The features' part of the method; its distillation of the classification head is none of
    feature maps.
    """

    needs_boxes = True

    @configurable
    def __init__(
        self,
        *,
        weight_object: float = 3.0,
        weight_background: float = 12.0,
        canonical_box_size: int = 224,
    ):
        """
        Args:
            canonical_box_size: side of the boxes that belong to stride 16, in pixels.
        """
        super().__init__()
        check_number("DEFEAT.WEIGHT_OBJECT", weight_object)
        check_number("DEFEAT.WEIGHT_BACKGROUND", weight_background)
        check_number("DEFEAT.CANONICAL_BOX_SIZE", canonical_box_size, positive=True)
        self.weight_object = weight_object
        self.weight_background = weight_background
        self.canonical_box_size = canonical_box_size

    def make_layers(self, student, teacher):
        return nn.Conv2d(student.channels, teacher.channels, 3, padding=1)

    def level_loss(self, level, student, teacher, boxes):
        stride = self.strides[level]
        boxes = [b[self._levels_of(b) == int(math.log2(stride))] for b in boxes]
        inside = fill_boxes(boxes, student, stride)[:, None]
        squares = (self.levels[level](student) - teacher).square()
        terms = {}
        for term, weight, mask in (
            ("loss_distill_defeat_object", self.weight_object, inside),
            ("loss_distill_defeat_background", self.weight_background, 1 - inside),
        ):
            entries = (mask.sum() * teacher.shape[1]).clamp(min=1)
            loss = (squares * mask).sum() / (2 * entries)
            terms[term] = weight / len(self.levels) * loss
        return terms

    def _levels_of(self, boxes: torch.Tensor) -> torch.Tensor:
        """log2 of the stride of each box's level."""
        levels = [int(math.log2(stride)) for stride in self.strides.values()]
        assigned = assign_boxes_to_levels(
            [Boxes(boxes)], min(levels), max(levels), self.canonical_box_size, canonical_level=4
        )
        return assigned + min(levels)
