"""
OFD: B. Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .base import LevelwiseDistiller
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class OFD(LevelwiseDistiller):
    """
    Partial L2 distance (equation 3) between the teacher's map through a margin ReLU, max(A_T, m),
    and the student's through a 1x1 convolution and batch norm: where the teacher is not positive
    and the student is below it already, there is no loss. The mean over N, C, H and W.

    The margin m of a channel is the expectation of the teacher's negative values (equation 2). An
    FPN has no batch norm to derive it from, so it is averaged over the images seen so far.

    The authors, whose code is for classification and segmentation, take the sum over C, H and W
    divided by 10^4 instead of the mean, and halve it from each stage to the one before. With maps
    as large as an FPN's that would be thousands of times the mean, so it is not the default here.
    """

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level.
        weight: float = number(1.0)

    def make_layers(self, student, teacher):
        return _Connector(student.channels, teacher.channels)

    def level_loss(self, level, student, teacher, boxes):
        layers = self.levels[level]
        margin = layers.margin(teacher)
        target = torch.maximum(teacher, margin[:, None, None].to(teacher.dtype))
        student = layers(student)
        active = (student > target) | (target > 0)
        loss = ((student - target).square() * active).mean()
        return {"loss_distill_ofd": self.settings.weight * loss}


class _Connector(nn.Sequential):
    """
    From the student's channels to the teacher's, and the teacher's margins.

    Attributes:
        track_running_stats: as a batch norm's: whether images count for the margins.
    """

    def __init__(self, student: int, teacher: int):
        super().__init__(nn.Conv2d(student, teacher, 1, bias=False), nn.BatchNorm2d(teacher))
        self.register_buffer("negative_sum", torch.zeros(teacher))
        self.register_buffer("negative_count", torch.zeros(teacher))
        self.track_running_stats = True

    def margin(self, maps: torch.Tensor) -> torch.Tensor:
        """The mean of each channel's negative values (C), over all maps (N, C, H, W) so far."""
        if self.track_running_stats:
            self.negative_sum += maps.clamp(max=0).sum((0, 2, 3))
            self.negative_count += (maps < 0).sum((0, 2, 3))
        return self.negative_sum / self.negative_count.clamp(min=1)
