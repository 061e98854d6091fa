"""
Attention of feature maps, the masks made from it, and norms of differences.

Shape legend: N images, C channels, H x W positions of a feature map.
"""

import math
from typing import Sequence, Tuple

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
    if pool == "abs":  # the 1-norm makes no map of |x|
        return torch.linalg.vector_norm(x, 1, dim=1) / x.shape[1]
    return x.mean(dim=1)


def channel_attention(x: torch.Tensor, pool: str = "abs") -> torch.Tensor:
    """G_c: mean over positions of |x| (or of x). (N, C, H, W) -> (N, C)."""
    if pool == "abs":
        return torch.linalg.vector_norm(x, 1, dim=3).mean(dim=2) / x.shape[3]
    return x.mean(dim=(2, 3))


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
    both = torch.stack([student.detach(), teacher.detach()]) / temperature
    if fusion == "softmax_of_sum":
        mask = F.softmax(both.sum(0), dim=1)
    else:
        mask = F.softmax(both, dim=2).mean(0)
    return mask * mask.shape[1]


def reduce_norms(
    norms: Sequence[torch.Tensor],
    sizes: Sequence[Sequence[int]],
    *,
    reduction: str,
    strides: Sequence[int],
    weight: float,
) -> Tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """
    L2 norms of several differences, times a weight, from the norms of their images; and what leads
    to the gradients, which are zero where a difference is zero.

    Args:
        norms: of each difference, (N,).
        sizes: H and W of each; not looked at where its stride is 0.
        reduction: "sum" for one norm over the whole batch, as in the paper. "mean" for the mean
            over images of ``norm * sqrt(n R / (s^2 H W))``: the same number whatever the batch
            and image size, and equal to "sum" for n = 2 images of R = 800 x 1344 pixels.
        strides: s, of the level that each difference is of; 0 for what has no positions (the
            factor is then ``sqrt(n)``).
        weight: of the loss.

    Returns:
        The weighted norms, (len(norms),), and for each difference the factors (N,) that make of its
        images their gradients.
    """
    scales = [weight] * len(norms)
    if reduction == "mean":
        scales = [weight * _mean_scale(*of_level) for of_level in zip(strides, sizes)]
    scaled = torch.stack(torch._foreach_mul(norms, scales))
    images = scaled.shape[1]
    if reduction == "sum":
        values = lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    else:
        values, lengths = scaled.mean(1, keepdim=True), images * scaled
    inverse = torch.where(lengths > 0, lengths.reciprocal(), 0.0).expand(-1, images)
    factors = torch._foreach_mul(inverse.unbind(), [scale**2 for scale in scales])
    return values.squeeze(1), factors


def _mean_scale(stride: int, size: Sequence[int]) -> float:
    scale = float(REFERENCE_IMAGES)
    if stride:
        scale *= REFERENCE_AREA / (stride**2 * size[0] * size[1])
    return math.sqrt(scale)
