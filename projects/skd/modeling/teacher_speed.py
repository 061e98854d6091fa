"""Ways to make a frozen network cheaper to run. What each costs in exactness is in its tests."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fold_batch_norm(model: nn.Module) -> int:
    """
    Fold batch norms with fixed statistics into the convolutions before them, in place.

    Only where Detectron2's ``Conv2d`` says that the two belong together; a norm that stands beside
    its convolution (as in RegNet) stays.

    Returns:
        How many were folded.
    """
    count = 0
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if not isinstance(conv, Conv2d) or not _has_fixed_statistics(norm):
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        conv.weight.requires_grad_(False), conv.bias.requires_grad_(False)
        conv.norm = None
        count += 1
    return count


def _has_fixed_statistics(norm: nn.Module) -> bool:
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None


def halve(image: torch.Tensor) -> torch.Tensor:
    """
    An image at half its size, in its type: means of 2 x 2 pixels, at odd edges of those there are.
    Nothing moves: pixel i stands for the pixels 2i and 2i + 1.

    Args:
        image: (C, H, W).

    Returns:
        (C, ceil(H / 2), ceil(W / 2)); whole numbers are rounded.
    """
    exact = image.to(torch.promote_types(image.dtype, torch.float32))
    means = F.avg_pool2d(exact, 2, ceil_mode=True)
    return (means if image.is_floating_point() else means.round()).to(image.dtype)


def of_halved(shape: ShapeSpec) -> ShapeSpec:
    """A map of halved images, with its stride in pixels of the whole ones (None if not known)."""
    stride = shape.stride and 2 * shape.stride
    return ShapeSpec(shape.channels, shape.height, shape.width, stride)
