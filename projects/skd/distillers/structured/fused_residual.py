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
:func:`..attention.reduce_squares` gives and the caller multiplies in. Where W_i and b are
themselves functions of parameters (the non-local loss), autograd leads their gradients further.

Shape legend: N images, C channels, P = H W positions of a feature map, k channels of an embedding.
"""

import itertools
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

# Chunk size in elements of the residual: on a CPU what stays in its cache, on a GPU large products.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


def chunks(x: torch.Tensor, unit: int = 1) -> Iterator[Tuple[slice, slice]]:
    """
    Images and positions of (N, C, P), in chunks of about ``CHUNK_ELEMENTS``.

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
    Squared norm of ``root * (sum_i W_i X_i + b - T)`` and its gradients, chunk by chunk.

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
    for rows, columns in chunks(target):

        def chunk(x):
            return x[rows, :, columns]

        t = chunk(target)
        # a buffer of its own and contiguous, whatever the target's memory format
        e = torch.sub(bias[rows], t, out=t.new_empty(t.shape))
        for w, x in terms:
            e.baddbmm_(w[rows], chunk(x))
        if root is not None:
            e.mul_(chunk(root))
        # norms of rows first: one fp32 sum over millions of squares loses digits
        squares[rows] += torch.linalg.vector_norm(e, dim=2).square_().sum(1)
        if products is None:
            continue
        if root is not None:  # once in the norm, once more in its derivative
            e.mul_(chunk(root))
        out.bias[rows] += e.sum(2)
        torch.bmm(terms[0][0][rows].transpose(1, 2), e, out=chunk(out.map))
        for y, product in zip(products, out.products):
            product[rows].baddbmm_(e, chunk(y).transpose(1, 2))
    return out


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
    """
    In another's shape, and not a view: autograd accumulates in place into a gradient that nobody
    else holds, and makes a new map otherwise.
    """
    return gradient.view_as(like).detach()
