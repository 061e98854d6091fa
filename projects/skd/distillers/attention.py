"""
Attention of feature maps, the masks made from it, and norms of differences.

Shape legend: N images, C channels, H x W positions of a feature map.
"""

import math

import torch
import torch.nn.functional as F

MASK_FUSIONS = ("mean_of_softmaxes", "softmax_of_sum")
POOLS = ("mean", "abs")
REDUCTIONS = ("sum", "mean")

# The setting the paper's weights were tuned for: images per GPU, and their size after resizing.
REFERENCE_IMAGES = 2
REFERENCE_AREA = 800 * 1344


def spatial_attention(x: torch.Tensor, pool: str = "abs") -> torch.Tensor:
    """G_s: mean over channels of |x| (or of x). (N, C, H, W) -> (N, H, W)."""
    return (x.abs() if pool == "abs" else x).mean(dim=1)


def channel_attention(x: torch.Tensor, pool: str = "abs") -> torch.Tensor:
    """G_c: mean over positions of |x| (or of x). (N, C, H, W) -> (N, C)."""
    return (x.abs() if pool == "abs" else x).mean(dim=(2, 3))


def attention_mask(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, fusion: str
) -> torch.Tensor:
    """
    M_s or M_c: where student and teacher pay attention, with a mean of 1 for each image.

    Args:
        student, teacher: attention over K places (positions or channels), both (N, K).
        temperature: tau, of the softmax.
        fusion: "mean_of_softmaxes" (released code) or "softmax_of_sum" (paper, and peakier).

    Returns:
        (N, K), without gradient.
    """
    student, teacher = student.detach() / temperature, teacher.detach() / temperature
    if fusion == "softmax_of_sum":
        mask = F.softmax(student + teacher, dim=1)
    else:
        mask = (F.softmax(student, dim=1) + F.softmax(teacher, dim=1)) / 2
    return mask * mask.shape[1]


def difference_norm(difference: torch.Tensor, reduction: str, stride: int = 0) -> torch.Tensor:
    """
    L2 norm of a difference; its gradient where the difference is zero is zero.

    Args:
        difference: (N, ...), with H and W as last dimensions if ``stride`` is given.
        reduction: "sum" for one norm over the whole batch, as in the paper. "mean" for the mean
            over images of ``norm * sqrt(n R / (s^2 H W))``: the same number whatever the batch
            and image size, and equal to "sum" for n = 2 images of R = 800 x 1344 pixels.
        stride: s, of the level the difference is of; 0 for what has no positions (the factor is
            then ``sqrt(n)``).
    """
    if reduction == "sum":
        return torch.linalg.vector_norm(difference)
    scale = float(REFERENCE_IMAGES)
    if stride:
        scale *= REFERENCE_AREA / (stride**2 * difference.shape[-2] * difference.shape[-1])
    return torch.linalg.vector_norm(difference.flatten(1), dim=1).mean() * math.sqrt(scale)
