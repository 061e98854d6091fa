"""Ways to make a frozen network cheaper to run. What each costs in exactness is in its tests."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
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
