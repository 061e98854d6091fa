"""
DeFeat: J. Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021,
arXiv 2103.14475.
"""

import math
from dataclasses import dataclass

import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes

from .base import LevelwiseDistiller, wide_adapter
from .boxes import fill_boxes
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class DeFeat(LevelwiseDistiller):
    """
    Squared differences to the teacher within the objects' boxes and outside of them, each divided
    by 2 N, the number of its entries, with weights of their own (equation 4); averaged over levels
    as in the authors' code, after a 3x3 convolution. A box belongs to the level a box head pools
    it from.

    The features' part of the method; its distillation of the classification head is none of
    feature maps. A box covers every cell it touches, where the authors truncate its corners to
    whole cells. For Pascal VOC they have weights of 3 and 12.
    """

    needs_boxes = True

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss within objects and outside of them: the authors', for COCO.
        weight_object: float = number(4.0)
        weight_background: float = number(16.0)
        # Boxes of this side, in pixels, belong to stride 16 (as in MODEL.ROI_BOX_HEAD's pooler).
        canonical_box_size: int = number(224, positive=True)
        # Standard deviation of the convolution's first weights.
        adapter_std: float = number(1e-4, positive=True)

    def make_layers(self, student, teacher):
        return wide_adapter(student, teacher, self.settings.adapter_std)

    def level_loss(self, level, student, teacher, boxes):
        stride = self.strides[level]
        # zeros for boxes of other levels: to choose from them would wait for the device
        of_level = [self._levels_of(b) == int(math.log2(stride)) for b in boxes]
        inside = fill_boxes(boxes, student, stride, of_level)[:, None]
        squares = (self.levels[level](student) - teacher).square()
        terms = {}
        for term, weight, mask in (
            ("loss_distill_defeat_object", self.settings.weight_object, inside),
            ("loss_distill_defeat_background", self.settings.weight_background, 1 - inside),
        ):
            entries = (mask.sum() * teacher.shape[1]).clamp(min=1)
            loss = (squares * mask).sum() / (2 * entries)
            terms[term] = weight / len(self.levels) * loss
        return terms

    def _levels_of(self, boxes: torch.Tensor) -> torch.Tensor:
        """log2 of the stride of each box's level."""
        levels = [int(math.log2(stride)) for stride in self.strides.values()]
        assigned = assign_boxes_to_levels(
            [Boxes(boxes)], min(levels), max(levels), self.settings.canonical_box_size, 4
        )
        return assigned + min(levels)
