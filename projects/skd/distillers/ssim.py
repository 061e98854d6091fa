"""
SSIM: P. de Rijk et al., "Structural Knowledge Distillation for Object Detection", NeurIPS 2022,
arXiv 2211.13133.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .base import LevelwiseDistiller, adapter
from .registry import DISTILLER_REGISTRY
from .settings import Settings, number

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@DISTILLER_REGISTRY.register()
class SSIM(LevelwiseDistiller):
    """
    Comparison of the local structure instead of pixels: mean of (1 - SSIM) / 2, with means,
    variances and covariance of each channel in Gaussian windows (11x11, sigma 1.5; padded by
    reflection, or by repetition on maps too small to reflect).

    The constants C1 and C2 are those of a dynamic range of 1, but the maps are compared as they
    are. The authors may normalize them to [0, 1] first; no released code of theirs was found.
    """

    @dataclass(frozen=True)
    class Settings(Settings):
        # Times the loss at each level. The authors' was not found: 1 is this project's.
        weight: float = number(1.0)

    def make_layers(self, student, teacher):
        return adapter(student, teacher)

    def level_loss(self, level, student, teacher, boxes):
        similarity = ssim(self.levels[level](student), teacher)
        return {"loss_distill_ssim": self.settings.weight * (1 - similarity).mean() / 2}


def ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Structural similarity of two maps (N, C, H, W) at each position, at most 1."""
    # variances are differences of squares: without what the channels have in common they keep
    # their digits, also where a GPU convolves in TF32
    common = (x.mean((0, 2, 3), keepdim=True) + y.mean((0, 2, 3), keepdim=True)).detach() / 2
    x, y = x - common, y - common
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = (_blur(x * x) - mean_x**2).clamp(min=0)
    var_y = (_blur(y * y) - mean_y**2).clamp(min=0)
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + common, mean_y + common
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance * (2 * covariance + C2) / (var_x + var_y + C2)


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian mean around each position of (N, C, H, W)."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-offsets.square() / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    n, c, h, w = x.shape
    pad = WINDOW // 2
    x = x.reshape(n * c, 1, h, w)
    x = F.pad(x, (pad,) * 4, mode="reflect" if min(h, w) > pad else "replicate")
    x = F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return x.view(n, c, h, w)
