"""
ReviewKD: P. Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044.
"""

from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from .base import LevelwiseDistiller, no_autocast
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class ReviewKD(LevelwiseDistiller):
    """
    Attention-based fusion of the student's maps, each into the next from the coarsest level to the
    finest; what comes out at each level imitates the teacher's map there at several scales
    (hierarchical context loss); section 3 of the paper.
    """

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level. The authors choose it for each pair of networks. Faster and
        # Mask R-CNN: 1 and 0.8 for R50 <- R101, 1.2 and 1.5 for R18 <- R101, 2 and 1 for
        # MobileNetV2 <- R50; RetinaNet: 1.
        weight: float = number(1.0)

    def bind(self, shapes):
        widths = sorted({teacher.channels for _, teacher in shapes.values()})
        if len(widths) > 1:
            raise ValueError(
                f"The teacher's levels have {widths} channels. ReviewKD fuses each into the next "
                "and needs as many at all of them, as an FPN has."
            )
        super().bind(dict(reversed(shapes.items())))  # coarsest first

    def make_layers(self, student, teacher):
        return Fusion(student.channels, teacher.channels, fuse=len(self.levels) > 0)

    def forward(self, student, teacher, boxes=None):
        losses, fused = {}, None
        with no_autocast(student):
            for level, a_s, a_t in self.pairs(student, teacher):
                out, fused = self.levels[level](a_s, fused)
                losses[level] = self.settings.weight * hierarchical_context_loss(out, a_t)
        return {"loss_distill_reviewkd": losses}


def hierarchical_context_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the maps and of their averages over 4x4, 2x2 and 1x1 fields."""
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= student.shape[2]:
            continue
        weight /= 2
        pooled = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
        loss = loss + weight * F.mse_loss(*pooled)
        total += weight
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of a level with the one above it (coarser)."""

    def __init__(self, student: int, teacher: int, fuse: bool):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False), nn.BatchNorm2d(teacher)
        )
        self.attention = nn.Conv2d(2 * teacher, 2, 1) if fuse else None
        self.out = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher)
        )
        for conv in (self.embed[0], self.out[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(
        self, x: torch.Tensor, above: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: the student's map (N, C_s, H, W).
            above: the fused map of the coarser level, (N, C_t, h, w).

        Returns:
            What imitates the teacher, and the fused map for the next finer level, (N, C_t, H, W).
        """
        x = self.embed(x)
        if self.attention is not None:
            above = F.interpolate(above, x.shape[-2:], mode="nearest")
            share = self.attention(torch.cat([x, above], 1)).sigmoid()
            x = x * share[:, :1] + above * share[:, 1:]
        return self.out(x), x
