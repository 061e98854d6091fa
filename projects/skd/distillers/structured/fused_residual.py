"""
What the fused losses share: the norm of a difference of whole feature maps, and its gradients,
without keeping a map for backward.

L_AM and L_NL are norms of a residual that is linear in a few maps, ``E = sum_i W_i X_i + b - T``.
Autograd would keep ``E`` and more of the size of the maps (138 MB each at P2, two images) until
backward. Here the forward pass goes through the maps chunk by chunk, and does all that needs ``E``
while it is in cache:

1. made: ``E`` of the chunk, one matrix product for each map;
2. measured: its squared norm is added up;
3. turned into gradients: of ``|E|^2 / 2`` they are ``W_0^T E`` for the map X_0, ``E X_j^T`` for a
   matrix, and the sum of ``E`` over positions for b;
4. overwritten by the next chunk's.

Saved for backward: the gradient of the student's map, which it needs anyway, and those of the
matrices and biases, which are small. Recomputed: nothing. The norm's own derivative,
``1 / |E|``, is known only when all chunks are through; it is a factor for each image, which
:func:`..attention.reduce_norms` gives and the caller multiplies in. Where W_i and b are
themselves functions of parameters (the non-local loss), autograd leads their gradients further.
The loss and its gradients are then a :class:`LossWithGradients`, which autograd is told of last.

Shape legend: N images, C channels, P = H W positions of a feature map, k channels of an embedding.
"""

import itertools
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.autograd.function import once_differentiable

from ..base import at_least_fp32

MapList = Sequence[torch.Tensor]  # (N, C, H, W) of each level
# What makes the loss of norms and sizes: :func:`..attention.reduce_norms` with all else bound.
Norm = Callable[
    [Sequence[torch.Tensor], Sequence[Sequence[int]]], Tuple[torch.Tensor, Sequence[torch.Tensor]]
]

# Chunk size in elements of the residual: on a CPU what stays in its cache, on a GPU large products.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


def chunks(x: torch.Tensor, unit: int = 1) -> Tuple[List[slice], List[slice]]:
    """
    Images and positions of (N, C, P), such that any of these with any of those are a chunk of about
    ``CHUNK_ELEMENTS``.

    Args:
        x: the map.
        unit: positions that stay together; what is left at the end goes with the last of them.
    """
    n, c, p = x.shape
    elements = CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["cuda"])
    images = max(1, elements // (c * p))
    starts = range(0, max(p - unit + 1, 1), max(1, elements // (c * unit)) * unit)
    columns = [slice(j, p if j == starts[-1] else j + starts.step) for j in starts]
    return [slice(i, i + images) for i in range(0, n, images)], columns


class Residual(NamedTuple):
    """
    norms: (N,), of each image's residual.
    products: d squares / d W for the matrix W of each map asked for, for each image, (N, C, C_j).
    bias: d squares / d b, for each image, (N, C).
    map: d squares / d X_0, (N, C_0, P).
    Squares are those of the norms, and their gradients are halved. Without gradients the last three
    are None.
    """

    norms: torch.Tensor
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
    Norm of ``root * (sum_i W_i X_i + b - T)`` and the gradients of its square, chunk by chunk.

    Args:
        terms: (W_i, X_i): (C, C_i) or (N, C, C_i), and (N, C_i, P).
        bias: b, (C,) or (N, C).
        target: T, (N, C, P).
        root: square root of a mask, (N, 1 or C, P).
        products: maps (N, C_j, P) whose matrices' gradients are made; None for no gradients.

    Maps may be in half precision: chunks of them are converted.
    """
    n, c, p = target.shape
    terms = [(w.expand(n, *w.shape[-2:]), x) for w, x in terms]
    bias = bias.expand(n, c)[:, :, None]
    images, columns = chunks(target)
    norms = bias.new_empty(n, c, len(columns))
    if products is not None:
        d_bias = bias.new_empty(n, c)
        d_matrices = [bias.new_empty(n, c, y.shape[1]) for y in products]
        d_map = bias.new_empty(terms[0][1].shape)
    for rows, (i, positions) in itertools.product(images, enumerate(columns)):

        def chunk(x):
            return at_least_fp32(x[rows, :, positions])

        t = chunk(target)
        # a buffer of its own and contiguous, whatever the target's memory format
        e = torch.sub(bias[rows], t, out=t.new_empty(t.shape))
        for w, x in terms:
            e.baddbmm_(w[rows], chunk(x))
        if root is not None:
            e.mul_(chunk(root))
        # norms of rows first: one fp32 sum over millions of squares loses digits
        torch.linalg.vector_norm(e, dim=2, out=norms[rows, :, i])
        if products is None:
            continue
        if root is not None:  # once in the norm, once more in its derivative
            e.mul_(chunk(root))
        add_sum(d_bias[rows], e, first=i == 0)
        torch.bmm(terms[0][0][rows].transpose(1, 2), e, out=d_map[rows, :, positions])
        for y, product in zip(products, d_matrices):
            add_product(product[rows], e, chunk(y), first=i == 0)
    norms = torch.linalg.vector_norm(norms.flatten(1), dim=1)
    return Residual(norms) if products is None else Residual(norms, d_matrices, d_bias, d_map)


def add_product(
    into: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, first: bool, factor: float = 1.0
) -> None:
    """
    ``into += factor * x y^T``, over the chunks of a map.

    Args:
        into: (N, A, B).
        x, y: (N, A, P) and (N, B, P).
        first: whether nothing is in it yet, not even zeros.
    """
    into.baddbmm_(x, y.transpose(1, 2), beta=0 if first else 1, alpha=factor)


def add_sum(into: torch.Tensor, x: torch.Tensor, *, first: bool) -> None:
    """``into += sum of x`` over the positions of (N, A, P), into (N, A); see above."""
    if first:
        torch.sum(x, dim=2, out=into)
    else:
        into.add_(x.sum(2))


def needs_gradients(*inputs: torch.Tensor) -> bool:
    """Whether anybody wants gradients."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


class LossWithGradients(NamedTuple):
    """
    A scalar computed together with its gradients.

    value: the scalar.
    inputs: tensors; first the student's map, if it has one.
    gradients: of each; None where nobody asks. Of a map in half precision it is in fp32.
    """

    value: torch.Tensor
    inputs: Sequence[torch.Tensor]
    gradients: Optional[Sequence[torch.Tensor]]

    def in_graph(self) -> torch.Tensor:
        """The scalar as a part of autograd's graph."""
        if self.gradients is None:
            return self.value
        return _Join.apply(self.value, self.gradients, *self.inputs)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, gradients, *inputs):
        ctx.is_leaf = inputs[0].is_leaf
        # not views, and in another's shape: autograd accumulates in place into a gradient that
        # nobody else holds, and makes a new map otherwise
        ctx.save_for_backward(*(d.view_as(x).detach() for d, x in zip(gradients, inputs)))
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return None, None, *saved_gradients(grad, ctx)


def saved_gradients(grad: torch.Tensor, ctx) -> List[torch.Tensor]:
    """
    The saved gradients, the map's first, times that of the loss. That is 1 as a rule, and a CPU is
    then spared a map; a GPU would have to wait to see it, and a leaf would keep the saved one.
    """
    d_map, *rest = ctx.saved_tensors
    if ctx.is_leaf or grad.device.type != "cpu" or grad != 1:
        d_map = d_map * grad
    return [d_map, *(torch._foreach_mul(rest, grad) if rest else [])]
