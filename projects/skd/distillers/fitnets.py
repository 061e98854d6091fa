"""
FitNets: A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.
"""

import torch.nn.functional as F
from detectron2.config import configurable

from .base import DISTILLER_REGISTRY, LevelwiseDistiller, adapter
from .checks import check_number


@DISTILLER_REGISTRY.register()
class FitNets(LevelwiseDistiller):
    """
    The student's map, through a learnt regressor r, equals the teacher's: 1/2 (A_T - r(A_S))^2
    (equation 3), here the mean over N, C, H and W instead of the sum.
    """

    @configurable
    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        check_number("FITNETS.WEIGHT", weight)
        self.weight = weight

    def make_layers(self, student, teacher):
        return adapter(student, teacher, always=True)

    def level_loss(self, level, student, teacher, boxes):
        return {
            "loss_distill_fitnets": self.weight
            * F.mse_loss(self.levels[level](student), teacher)
            / 2
        }
