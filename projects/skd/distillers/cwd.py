"""
CWD: C. Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
arXiv 2011.13256.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from .base import LevelwiseDistiller, adapter
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number


@DISTILLER_REGISTRY.register()
class CWD(LevelwiseDistiller):
    """
    Each channel is a distribution over positions, softmax(A / T): T^2 / C times the sum over
    channels of KL(teacher || student) (equations 4 and 5), averaged over images.
    """

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level.
        weight: float = number(5.0)
        # T of the softmax over positions.
        temperature: float = number(1.0, positive=True)

    def make_layers(self, student, teacher):
        return adapter(student, teacher)

    def level_loss(self, level, student, teacher, boxes):
        n, c = teacher.shape[:2]
        weight, temperature = self.settings.weight, self.settings.temperature
        log_p = [
            F.log_softmax(x.flatten(2) / temperature, 2)
            for x in (self.levels[level](student), teacher)
        ]
        divergence = F.kl_div(*log_p, reduction="sum", log_target=True)
        return {"loss_distill_cwd": weight * temperature**2 / (n * c) * divergence}
