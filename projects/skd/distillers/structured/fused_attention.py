"""
Attention transfer's attention and the masked feature loss, without a map kept for backward: see
``fused_residual.py``.
"""

from typing import List, Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..attention import channel_attention, spatial_attention
from ..base import at_least_fp32
from .fused_residual import LossWithGradients, MapList, Norm, needs_gradients, residual
from .precision import products_like_convolutions


class Attention(torch.autograd.Function):
    """
    Spatial and channel attention of a map. Their gradients are not maps of their own: autograd
    accumulates views of (N, H, W) and (N, C) into the map's gradient. For that it has to see two
    inputs, so the map is passed twice. "mean" saves nothing, "abs" the map, which lives anyway.
    """

    @staticmethod
    def forward(ctx, x, same, pool):
        """(N, C, H, W), the same again, and a name in ``POOLS`` -> (N, H, W) and (N, C)."""
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.save_for_backward(x if pool == "abs" else None)
        x = at_least_fp32(x)
        return spatial_attention(x, pool), channel_attention(x, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_space, d_channels):
        (x,) = ctx.saved_tensors
        _, c, h, w = ctx.shape
        d_space = (d_space / c)[:, None].to(ctx.dtype)
        d_channels = (d_channels / (h * w))[:, :, None, None].to(ctx.dtype)
        if x is not None:
            return (d_space + d_channels).mul_(x.sign()), None, None
        return d_space.expand(ctx.shape), d_channels.expand(ctx.shape), None


def masked_feature_norms(
    students: MapList,
    teachers: MapList,
    convs: Sequence[nn.Conv2d],
    roots: MapList,
    norm: Norm,
) -> List[LossWithGradients]:
    """
    Norms of ``root * (A_T - W A_S - b)``, root^2 = M_s M_c: L_AM of several levels.

    Args:
        students, teachers: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teachers'.
        convs: 1x1, from C_s to C_t.
        roots: square root of the masks, (N, 1 or C_t, H, W).
        norm: with a stride for each level.
    """
    wanted = needs_gradients(*students, *(p for conv in convs for p in conv.parameters()))
    with torch.no_grad(), products_like_convolutions(students[0].device):
        found = []
        for conv, *maps in zip(convs, students, teachers, roots):
            x, t, root = (y.flatten(2) for y in maps)
            term = (conv.weight.flatten(1), x)
            found.append(residual([term], conv.bias, t, root, [x] if wanted else None))
        values, factors = norm([r.norms for r in found], [x.shape[-2:] for x in students])
        known = []
        for value, r, f, x, conv in zip(values.unbind(), found, factors, students, convs):
            gradients = None
            if wanted:
                d_weight, d_bias = (d.flatten(1).t().mv(f) for d in (r.products[0], r.bias))
                gradients = [r.map.mul_(f[:, None, None]), d_weight, d_bias]
            known.append(LossWithGradients(value, [x, conv.weight, conv.bias], gradients))
        return known


def difference_norms(
    differences: Sequence[Sequence[torch.Tensor]], norm: Norm
) -> List[LossWithGradients]:
    """
    Norms of differences, summed.

    Args:
        differences: at each level several, (N, ...), with H and W as last dimensions or without
            positions.
        norm: with a stride for each of all; 0 for what has no positions.
    """
    every = [d for of_level in differences for d in of_level]
    wanted = needs_gradients(*every)
    with torch.no_grad():
        # norms of rows first: one fp32 sum over millions of squares loses digits
        rows = [torch.linalg.vector_norm(d, dim=-1) for d in every]
        norms = [r if r.dim() == 1 else torch.linalg.vector_norm(r.flatten(1), dim=1) for r in rows]
        values, factors = norm(norms, [d.shape[-2:] for d in every])
        values = values.view(len(differences), -1).sum(1)
        gradients = [None] * len(differences)
        if wanted:
            of_all = iter(d * f.view(-1, *[1] * (d.dim() - 1)) for d, f in zip(every, factors))
            gradients = [[next(of_all) for _ in of_level] for of_level in differences]
    return [LossWithGradients(*known) for known in zip(values.unbind(), differences, gradients)]
