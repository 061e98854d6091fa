"""
FGD: Z. Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022,
arXiv 2111.11837.
"""

from dataclasses import asdict, dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn

from .attention import channel_attention, spatial_attention
from .base import StagewiseDistiller, adapter
from .boxes import fill_boxes, grid
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number, whole


@DISTILLER_REGISTRY.register()
class FGD(StagewiseDistiller):
    """
    Focal distillation: squared differences weighted by the teacher's spatial and channel attention,
    apart for objects (each weighted by 1 / area) and background (1 / its size), and the L1 distance
    of the attentions (equations 2 to 10). Global distillation: squared difference after a GcBlock
    for each side (equation 11). All are sums over a map, divided by N.

    The one-stage weights are RetinaNet's. For FCOS and RepPoints the authors have 1.6e-3, 8e-4,
    8e-4 and 8e-6, and for FCOS a temperature of 0.8: set them, because shapes do not tell these
    detectors apart. The authors scale boxes by the image's size before padding and the map's size
    after it, which moves them in padded images; here they are divided by the stride.
    """

    needs_boxes = True
    # alpha, beta, gamma and lambda of the authors' configs; P2-P5 and P3-P7
    two_stage = {
        "weight_object": 5e-5,
        "weight_background": 2.5e-5,
        "weight_attention": 5e-5,
        "weight_global": 5e-7,
        "num_levels": 4,
    }
    one_stage = {
        "weight_object": 1e-3,
        "weight_background": 5e-4,
        "weight_attention": 5e-4,
        "weight_global": 5e-6,
        "num_levels": 5,
    }

    @dataclass(frozen=True)
    class Settings(Settings):
        """None: the authors', for one- or two-stage detectors."""

        # Temperature of the attentions' softmax.
        temperature: float = number(0.5, positive=True)
        # Times the squared difference within objects (alpha) and in the background (beta), the
        # difference of the attentions (gamma), and global distillation (lambda), at each level.
        weight_object: Optional[float] = number(None)
        weight_background: Optional[float] = number(None)
        weight_attention: Optional[float] = number(None)
        weight_global: Optional[float] = number(None)
        # How many of the levels are distilled, the finest first.
        num_levels: Optional[int] = whole(None)

    def make_layers(self, student, teacher):
        layers = {
            "align": adapter(student, teacher),
            "student_context": GlobalContext(teacher.channels),
            "teacher_context": GlobalContext(teacher.channels),
        }
        return nn.ModuleDict(layers)

    def level_loss(self, level, student, teacher, boxes):
        layers, stride = self.levels[level], self.strides[level]
        n = len(student)
        student = layers["align"](student)
        space_s, channel_s = self.attention(student)
        space_t, channel_t = self.attention(teacher)

        areas = [(high - low).prod(1) for low, high in (grid(b, stride, 1) for b in boxes)]
        objects = fill_boxes(boxes, student, stride, [1 / a for a in areas], border=1)
        background = (objects == 0).to(student.dtype)
        background = background / background.sum((1, 2), keepdim=True).clamp(min=1)
        squares = (student - teacher).square() * channel_t[:, :, None, None]
        squares = squares.sum(1) * space_t  # (N, H, W)

        weights = asdict(self.settings)
        attention = (space_s - space_t).abs().sum() + (channel_s - channel_t).abs().sum()
        relation = layers["student_context"](student) - layers["teacher_context"](teacher)
        terms = {
            "object": (squares * objects).sum(),
            "background": (squares * background).sum(),
            "attention": attention,
            "global": relation.square().sum(),
        }
        return {f"loss_distill_fgd_{k}": weights[f"weight_{k}"] * v / n for k, v in terms.items()}

    def attention(self, x: torch.Tensor):
        """Spatial (N, H, W) and channel (N, C) attention, both of mean 1 (equations 2 to 5)."""
        n, c, h, w = x.shape
        space = h * w * F.softmax(spatial_attention(x).flatten(1) / self.settings.temperature, 1)
        channels = c * F.softmax(channel_attention(x) / self.settings.temperature, 1)
        return space.view(n, h, w), channels


class GlobalContext(nn.Module):
    """GcBlock (Y. Cao et al., GCNet, 2019): adds a transform of the attention-pooled map."""

    def __init__(self, channels: int):
        super().__init__()
        middle = max(channels // 2, 1)
        self.attention = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, middle, 1),
            nn.LayerNorm([middle, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(middle, channels, 1),
        )
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_in")
        nn.init.zeros_(self.attention.bias)
        # so that it starts as the identity
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> the same."""
        attention = F.softmax(self.attention(x).flatten(2), 2)  # (N, 1, H*W)
        context = x.flatten(2) @ attention.transpose(1, 2)  # (N, C, 1)
        return x + self.transform(context.unsqueeze(-1))
