"""
The loss as its authors' released code computes it, operation by operation: what the benchmark
compares with. Only the layers are taken from the distiller under test: both sides share one set of
parameters and run its convolutions, so that what differs is the loss alone. It runs at full size,
which the tests' references, position by position in float64, cannot; and these share no code.
"""

import torch
import torch.nn.functional as F

from ...distillers import StructuredDistiller
from ...distillers.structured.level import StructuredLevel
from ...distillers.structured.non_local import NonLocalBlock


def non_local_block(block: NonLocalBlock, x: torch.Tensor) -> torch.Tensor:
    """The block's output by way of the affinity matrix of positions and keys, (N, HW, keys)."""
    theta, phi, g = block.embed(x)
    affinity = torch.matmul(theta.transpose(1, 2), phi)
    affinity = affinity / affinity.shape[-1]
    y = torch.matmul(affinity, g.transpose(1, 2)).transpose(1, 2).contiguous()
    return block.add(x, y)


def level_loss(level: StructuredLevel, student: torch.Tensor, teacher: torch.Tensor):
    """The three weighted terms at one level, in the ``two_stage`` preset's way."""
    n, c, h, w = teacher.shape

    def spatial_mask(x):
        attention = torch.mean(torch.abs(x), [1]).view(n, -1)
        return h * w * F.softmax(attention / level.settings.temperature, dim=1).view(n, 1, h, w)

    mask = ((spatial_mask(student) + spatial_mask(teacher)) / 2).detach()
    difference = torch.abs(teacher - level.feature_adapter(student)) ** 2
    am = torch.sum(difference * mask) ** 0.5

    channels = torch.dist(
        torch.mean(teacher, [2, 3]), level.channel_adapter(torch.mean(student, [2, 3]))
    )
    space = torch.dist(
        torch.mean(teacher, [1]).view(n, 1, h, w),
        level.spatial_adapter(torch.mean(student, [1]).view(n, 1, h, w)),
    )
    relation = level.non_local_adapter(non_local_block(level.student_non_local, student))
    difference = torch.abs(relation - non_local_block(level.teacher_non_local, teacher)) ** 2
    nl = torch.sum(difference) ** 0.5
    weights = level.settings
    return weights.weight_am * am, weights.weight_at * (channels + space), weights.weight_nl * nl


def loss(distiller: StructuredDistiller, student, teacher) -> torch.Tensor:
    """The sum over terms and levels. Maps (N, C, H, W) by level name."""
    return sum(
        sum(level_loss(level, student[name], teacher[name]))
        for name, level in distiller.levels.items()
    )
