"""
Attention transfer's attention and the masked feature loss, without a map kept for backward: see
``fused_residual.py``.
"""

import torch
from torch.autograd.function import once_differentiable

from ..attention import channel_attention, reduce_squares, spatial_attention
from .fused_residual import residual, saved_gradients, unshared
from .precision import like_convolutions


class Attention(torch.autograd.Function):
    """
    Spatial and channel attention of a map. Their gradients are not maps of their own: autograd
    accumulates views of (N, H, W) and (N, C) into the map's gradient. For that it has to see two
    inputs, so the map is passed twice. "mean" saves nothing, "abs" the map, which lives anyway.
    """

    @staticmethod
    def forward(ctx, x, same, pool):
        """(N, C, H, W), the same again, and a name in ``POOLS`` -> (N, H, W) and (N, C)."""
        ctx.shape = x.shape
        ctx.save_for_backward(x if pool == "abs" else None)
        return spatial_attention(x, pool), channel_attention(same, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_space, d_channels):
        (x,) = ctx.saved_tensors
        _, c, h, w = ctx.shape
        d_space, d_channels = (d_space / c)[:, None], (d_channels / (h * w))[:, :, None, None]
        if x is not None:
            return (d_space + d_channels).mul_(x.sign()), None, None
        return d_space.expand(ctx.shape), d_channels.expand(ctx.shape), None


class MaskedFeatureNorm(torch.autograd.Function):
    """Norm of ``root * (A_T - W A_S - b)``, root^2 = M_s M_c: L_AM."""

    @staticmethod
    @like_convolutions
    def forward(ctx, student, teacher, weight, bias, root, reduction, stride, loss_weight):
        """
        Args:
            student, teacher: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teacher.
            weight, bias: of the 1x1 convolution, (C_t, C_s, 1, 1) and (C_t,).
            root: square root of the mask, (N, 1 or C_t, H, W).
            reduction, stride: see ``difference_norm``.
            loss_weight: the norm is multiplied with.
        """
        wanted, ctx.is_leaf = any(ctx.needs_input_grad), student.is_leaf
        x = student.flatten(2)
        result = residual(
            [(weight.flatten(1), x)], bias, teacher.flatten(2), root.flatten(2),
            [x] if wanted else None,
        )  # fmt: skip
        value, factor = reduce_squares(
            result.squares, reduction, stride, student.shape[-2:], loss_weight
        )
        if wanted:
            ctx.save_for_backward(
                unshared(result.map.mul_(factor[:, None, None]), student),
                (result.products[0] * factor[:, None, None]).sum(0).view_as(weight),
                (result.bias * factor[:, None]).sum(0),
            )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_student, d_weight, d_bias = saved_gradients(grad, ctx)
        return d_student, None, d_weight, d_bias, None, None, None, None
