"""
The losses that compare whole feature maps, without keeping a map for backward; the non-local one
is in ``fused_non_local.py``.

Each is the norm of a residual that is linear in a few maps, ``sum_i W_i X_i + b - T``. Portion by
portion, the residual is made, measured, turned into the gradients and thrown away, in the forward
pass: what is kept until backward is the student's gradient itself. Gradients of the matrices
``W_i`` are then led further by autograd, because these are small.

Shape legend: N images, C channels, P = H W positions of a feature map, k channels of an embedding.
"""

import itertools
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.autograd.function import once_differentiable

from ..attention import channel_attention, reduce_squares, spatial_attention

# Of a residual in memory at one time: as much as stays in a CPU's cache; for a GPU, large products.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


def portions(x: torch.Tensor, unit: int = 1) -> Iterator[Tuple[slice, slice]]:
    """
    Images and positions of (N, C, P), such that a portion has about ``CHUNK_ELEMENTS``.

    Args:
        x: the map.
        unit: positions that stay together; what is left at the end goes with the last of them.
    """
    n, c, p = x.shape
    elements = CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["cuda"])
    images = max(1, elements // (c * p))
    starts = range(0, max(p - unit + 1, 1), max(1, elements // (c * unit)) * unit)
    for i, j in itertools.product(range(0, n, images), starts):
        yield slice(i, i + images), slice(j, p if j == starts[-1] else j + starts.step)


class Residual(NamedTuple):
    """
    squares: (N,), squared norm of each image's residual.
    products: d squares / d W for the matrix W of each map asked for, for each image, (N, C, C_j).
    bias: d squares / d b, for each image, (N, C).
    map: d squares / d X_0, (N, C_0, P).
    All gradients are halved. Without gradients the last three are None.
    """

    squares: torch.Tensor
    products: Optional[List[torch.Tensor]] = None
    bias: Optional[torch.Tensor] = None
    map: Optional[torch.Tensor] = None


def residual(
    terms: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    bias: torch.Tensor,
    target: torch.Tensor,
    root: Optional[torch.Tensor] = None,
    products: Optional[Sequence[torch.Tensor]] = None,
) -> Residual:
    """
    Squared norm of ``root * (sum_i W_i X_i + b - T)`` and its gradients, portion by portion.

    Args:
        terms: (W_i, X_i): (C, C_i) or (N, C, C_i), and (N, C_i, P).
        bias: b, (C,) or (N, C).
        target: T, (N, C, P).
        root: square root of a mask, (N, 1 or C, P).
        products: maps (N, C_j, P) whose matrices' gradients are made; None for no gradients.
    """
    n, c, p = target.shape
    terms = [(w.expand(n, *w.shape[-2:]), x) for w, x in terms]
    bias = bias.expand(n, c)[:, :, None]
    squares = target.new_zeros(n)
    out = Residual(squares)
    if products is not None:
        out = Residual(
            squares,
            [target.new_zeros(n, c, y.shape[1]) for y in products],
            target.new_zeros(n, c),
            torch.empty_like(terms[0][1]),
        )
    for rows, columns in portions(target):

        def portion(x):
            return x[rows, :, columns]

        part = portion(target)
        # of its own, whatever the target's memory format
        e = torch.sub(bias[rows], part, out=part.new_empty(part.shape))
        for w, x in terms:
            e.baddbmm_(w[rows], portion(x))
        if root is not None:
            e.mul_(portion(root))
        # norms of rows first: one fp32 sum over millions of squares loses digits
        squares[rows] += torch.linalg.vector_norm(e, dim=2).square_().sum(1)
        if products is None:
            continue
        if root is not None:
            e.mul_(portion(root))
        out.bias[rows] += e.sum(2)
        torch.bmm(terms[0][0][rows].transpose(1, 2), e, out=portion(out.map))
        for y, product in zip(products, out.products):
            product[rows].baddbmm_(e, portion(y).transpose(1, 2))
    return out


class Attention(torch.autograd.Function):
    """
    Spatial and channel attention of a map. Their gradients are no maps of their own: autograd adds
    views of (N, H, W) and (N, C) to the gradient it has.
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
    """Norm of ``root * (A_T - W A_S - b)``: L_AM."""

    @staticmethod
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


def saved_gradients(grad: torch.Tensor, ctx) -> List[Optional[torch.Tensor]]:
    """
    The saved gradients, the map's first, times that of the loss. That is 1 as a rule, and a CPU is
    then spared a map; a GPU would have to wait to see it, and a leaf would keep the saved one.
    """
    d_map, *rest = ctx.saved_tensors
    if ctx.is_leaf or grad.device.type != "cpu" or grad != 1:
        d_map = d_map * grad
    return [d_map, *(None if d is None else d * grad for d in rest)]


def unshared(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """In another's shape, and no view: to what nobody else has, autograd adds in place."""
    return gradient.view_as(like).detach()
