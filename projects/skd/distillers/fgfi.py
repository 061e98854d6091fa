"""
FGFI: T. Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019,
arXiv 1906.03609.
"""

from dataclasses import dataclass
from typing import Dict, List, Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou

from .base import LevelwiseDistiller, no_autocast, wide_adapter
from .boxes import make_anchors
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number, positive_numbers


@DISTILLER_REGISTRY.register()
class FGFI(LevelwiseDistiller):
    """
    The student, through a 3x3 convolution, imitates the teacher near objects only: where an anchor
    overlaps an object by more than ``threshold`` times the best overlap any anchor has with it.
    Of these N_p positions, 1 / (2 N_p) times the sum of squared differences (equation 1).

    Without the authors' ReLU after the convolution, because maps of an FPN are negative too; and
    without their warm-up, which leaves the loss out of the first 400 iterations.
    """

    needs_boxes = True

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level.
        weight: float = number(0.01)
        # An anchor's overlap with an object, as a share of the object's best, to imitate around it.
        threshold: float = number(0.5, below=1)
        # Side of a level's anchors, in strides of the level.
        anchor_scale: float = number(8.0, positive=True)
        # Height / width of the anchors.
        aspect_ratios: Sequence[float] = positive_numbers((0.5, 1.0, 2.0))
        # Standard deviation of the convolution's first weights.
        adapter_std: float = number(1e-4, positive=True)

    def make_layers(self, student, teacher):
        return wide_adapter(student, teacher, self.settings.adapter_std)

    def forward(self, student, teacher, boxes=None):
        losses = {}
        with no_autocast(student):
            # of all levels at once: the best overlap of an object is that over all of them
            masks = self.masks(student, boxes)
            for level, a_s, a_t in self.pairs(student, teacher):
                mask = masks[level].to(a_s.dtype)
                squares = (self.levels[level](a_s) - a_t).square() * mask[:, None]
                loss = squares.sum() / (2 * mask.sum().clamp(min=1))
                losses[level] = self.settings.weight * loss
        return {"loss_distill_fgfi": losses}

    @torch.no_grad()
    def masks(
        self, maps: Dict[str, torch.Tensor], boxes: List[torch.Tensor]
    ) -> Dict[str, torch.Tensor]:
        """Masks of where to imitate, bools (N, H, W) by level."""
        anchors = Boxes(torch.cat([self._anchors(maps[name], name) for name in self.levels]))
        near = []
        for b in boxes:
            iou = pairwise_iou(Boxes(b.to(anchors.tensor)), anchors)  # (G, anchors)
            best = iou.max(1, keepdim=True).values if len(b) else iou.new_zeros(0, 1)
            near.append(((iou > self.settings.threshold * best) & (iou > 0)).any(0))
        sizes = [maps[name].shape[-2:] for name in self.levels]
        per_level = [h * w * len(self.settings.aspect_ratios) for h, w in sizes]
        levels = torch.stack(near).split(per_level, 1)
        return {
            name: level.view(len(boxes), h, w, -1).any(-1)
            for name, level, (h, w) in zip(self.levels, levels, sizes)
        }

    def _anchors(self, x: torch.Tensor, level: str) -> torch.Tensor:
        stride = self.strides[level]
        side = self.settings.anchor_scale * stride
        return make_anchors(x, stride, side, self.settings.aspect_ratios)
