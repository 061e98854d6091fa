"""
FGFI: T. Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019,
arXiv 1906.03609.
"""

from typing import Dict, List, Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from .base import DISTILLER_REGISTRY, LevelwiseDistiller
from .checks import check_number


@DISTILLER_REGISTRY.register()
class FGFI(LevelwiseDistiller):
    """
    The student, through a 3x3 convolution, imitates the teacher near objects only: where an anchor
    overlaps an object by more than ``threshold`` times the best overlap any anchor has with it.
    Of these N_p positions, 1 / (2 N_p) times the sum of squared differences (equation 1).

    Without the authors' ReLU after the convolution, because maps of an FPN are negative too.
    """

    needs_boxes = True

    @configurable
    def __init__(
        self,
        *,
        weight: float = 0.01,
        threshold: float = 0.5,
        anchor_scale: float = 8.0,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ):
        """
        Args:
            anchor_scale: side of a level's anchors, in strides of the level.
            aspect_ratios: height / width of the anchors.
        """
        super().__init__()
        check_number("FGFI.WEIGHT", weight)
        check_number("FGFI.THRESHOLD", threshold, below=1)
        check_number("FGFI.ANCHOR_SCALE", anchor_scale, positive=True)
        for ratio in aspect_ratios:
            check_number("FGFI.ASPECT_RATIOS", ratio, positive=True)
        self.weight = weight
        self.threshold = threshold
        self.anchor_scale = anchor_scale
        self.aspect_ratios = aspect_ratios

    def bind(self, shapes):
        super().bind(shapes)
        strides = list(self.strides.values())
        sizes = [[self.anchor_scale * stride] for stride in strides]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[list(self.aspect_ratios)], strides=strides
        )

    def make_layers(self, student, teacher):
        return nn.Conv2d(student.channels, teacher.channels, 3, padding=1)

    def forward(self, student, teacher, boxes=None):
        # the best overlap of an object is that over all levels
        self._masks = self.masks(student, boxes)
        return super().forward(student, teacher, boxes)

    def level_loss(self, level, student, teacher, boxes):
        mask = self._masks.pop(level)
        squares = (self.levels[level](student) - teacher).square() * mask[:, None]
        loss = squares.sum() / (2 * mask.sum().clamp(min=1))
        return {"loss_distill_fgfi": self.weight * loss}

    @torch.no_grad()
    def masks(
        self, maps: Dict[str, torch.Tensor], boxes: List[torch.Tensor]
    ) -> Dict[str, torch.Tensor]:
        """Where to imitate, (N, H, W) of 0 and 1 by level."""
        maps = [maps[name] for name in self.levels]
        anchors = Boxes.cat(self.anchor_generator(maps))
        near = []
        for b in boxes:
            iou = pairwise_iou(Boxes(b.to(anchors.tensor)), anchors)  # (G, anchors)
            best = iou.max(1, keepdim=True).values if len(b) else iou.new_zeros(0, 1)
            near.append(((iou > self.threshold * best) & (iou > 0)).any(0))
        sizes = [x.shape[-2:] for x in maps]
        per_level = [h * w * len(self.aspect_ratios) for h, w in sizes]
        levels = torch.stack(near).split(per_level, 1)
        return {
            name: level.view(len(boxes), h, w, -1).any(-1).to(maps[0].dtype)
            for name, level, (h, w) in zip(self.levels, levels, sizes)
        }
