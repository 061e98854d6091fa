"""
CWD: C. Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
arXiv 2011.13256.
"""

import torch.nn.functional as F
from detectron2.config import configurable

from .base import DISTILLER_REGISTRY, LevelwiseDistiller, adapter
from .checks import check_number


@DISTILLER_REGISTRY.register()
class CWD(LevelwiseDistiller):
    """
    Each channel is a distribution over positions, softmax(A / T): T^2 / C times the sum over
    channels of KL(teacher || student) (equations 4 and 5), averaged over images.
    """

    @configurable
    def __init__(self, *, weight: float = 5.0, temperature: float = 1.0):
        super().__init__()
        check_number("CWD.WEIGHT", weight)
        check_number("CWD.TEMPERATURE", temperature, positive=True)
        self.weight = weight
        self.temperature = temperature

    def make_layers(self, student, teacher):
        return adapter(student, teacher)

    def level_loss(self, level, student, teacher, boxes):
        n, c = teacher.shape[:2]
        log_p = [
            F.log_softmax(x.flatten(2) / self.temperature, 2)
            for x in (self.levels[level](student), teacher)
        ]
        divergence = F.kl_div(*log_p, reduction="sum", log_target=True)
        return {"loss_distill_cwd": self.weight * self.temperature**2 / (n * c) * divergence}
