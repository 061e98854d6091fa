"""
The non-local loss of two blocks without their outputs: see ``fused_residual.py``, whose legend
holds here.

``r = x + BN(W y)`` of the whole map would be needed four times over (theta, y, W y and r). But
once some small tensors are known, the :class:`Moments`, a block is linear in its map:

    r = x + V (Theta x + b) + c,   V (N, C, k) and c (N, C) from the moments and the parameters

so that L_NL is the norm of a residual. In order:

1. :class:`BlockMap` reads each map once, chunk by chunk, for its moments: covariance of theta and
   map, and relation of the pooled keys. Saved: the keys, where the maxima of the pools were, and
   theta without its mean, (N, k, P); k is half of C or less.
2. :func:`mixing` makes V and c, with autograd, from detached leaves: all of this is small.
3. :func:`residual` reads the maps once more for the loss and the gradients of V, c and the maps.
4. :meth:`FusedBlocks.backward`: autograd leads the gradients of V and c to moments and
   parameters; those of the moments are led to the maps by hand, chunk by chunk. Recomputed: none
   of the large products of step 1.

What is small is done for all blocks of as many channels at once, B of them, student's and
teacher's at several levels: a GPU needs as long for one as for all, and its host too.

The student's gradient comes from 3 (direct) and 4 (through the moments); it is complete before
backward begins, and is what is saved.
"""

import itertools
from typing import List, Optional, Sequence, Tuple

import torch
from torch import nn

from .fused_blocks import BlockOutput, FusedBlocks, kind_of
from .fused_residual import (
    LossWithGradients,
    MapList,
    Norm,
    Residual,
    needs_gradients,
    residual,
)
from .non_local import NonLocalBlock
from .precision import products_like_convolutions


def non_local_norms(
    students: MapList,
    teachers: MapList,
    convs: Sequence[nn.Conv2d],
    blocks: Tuple[Sequence[NonLocalBlock], Sequence[NonLocalBlock]],
    norm: Norm,
) -> List[LossWithGradients]:
    """
    Norms of ``conv(r_S) - r_T`` for the outputs r of two non-local blocks: L_NL of several levels.

    With the convolution ``A x + a`` and the student's block as ``(1 + M) x + m``, ``conv(r_S)`` is
    ``A (1 + M) x + A m + a``: one product with the map instead of three.

    Args:
        students, teachers: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teachers'.
        convs: 1x1, from C_s to C_t.
        blocks: the students', which are all of one :func:`kind_of`, and the teachers', likewise.
        norm: with a stride for each level.
    """
    inputs = [
        [x, conv.weight, conv.bias, *s.parameters(), *t.parameters()]
        for x, conv, s, t in zip(students, convs, *blocks)
    ]
    wanted = needs_gradients(*itertools.chain(*inputs))
    with torch.no_grad(), products_like_convolutions(students[0].device):
        values, gradients = _non_local_norms(students, teachers, convs, blocks, norm, wanted)
    return [LossWithGradients(*of_level) for of_level in zip(values.unbind(), inputs, gradients)]


def _non_local_norms(
    students: MapList,
    teachers: MapList,
    convs: Sequence[nn.Conv2d],
    blocks: Tuple[Sequence[NonLocalBlock], Sequence[NonLocalBlock]],
    norm: Norm,
    wanted: bool,
) -> Tuple[torch.Tensor, List[Optional[List[torch.Tensor]]]]:
    """
    See :func:`non_local_norms`. L levels.

    Args:
        wanted: whether gradients are.

    Returns:
        The norms, (L,); and of each level the gradients of the student's map (N, C_s, P), the
        convolution's weight and bias, and the parameters of both blocks. None if not wanted.
    """
    levels = len(convs)
    stacks = _stack(students, teachers, blocks, wanted)
    # in a common stack the students' blocks come first and the teachers' last
    student = stacks[0].output.of(slice(levels))
    teacher = stacks[-1].output.of(slice(-levels, None))
    a = torch.stack([conv.weight.flatten(1) for conv in convs])  # A, (L, C_t, C_s)
    a_bias = torch.stack([conv.bias for conv in convs])[:, None]  # a, (L, 1, C_t)
    weight = a[:, None] + a[:, None] @ student.matrix  # A (1 + M), (L, N, C_t, C_s)
    # The teacher's side stays a product of width k, V (Theta t - Theta mean) + M mean: the bracket
    # is there already from the moments, and M t would be a product of width C.
    mean = stacks[-1].moments.mean.detach()[-levels:]  # of the teachers' maps, (L, N, C_t)
    constant = torch.baddbmm(a_bias, student.constant, a.mT) - teacher.constant
    constant = constant - (teacher.matrix @ mean[..., None]).squeeze(3)  # (L, N, C_t)
    minus_v, found = -teacher.mixed, []
    for i in range(levels):
        x, t = students[i].flatten(2), teachers[i].flatten(2)
        centered = stacks[-1].maps[i - levels].centered
        terms = [(weight[i], x), (minus_v[i, :, :, : centered.shape[1]], centered)]
        found.append(residual(terms, constant[i], t, None, [x, t] if wanted else None))
    values, factors = norm([r.norms for r in found], [x.shape[-2:] for x in students])
    if not wanted:
        return values, [None] * levels
    return values, _non_local_gradients(found, factors, a, student, stacks)


def _stack(
    students: MapList,
    teachers: MapList,
    blocks: Tuple[Sequence[NonLocalBlock], Sequence[NonLocalBlock]],
    wanted: bool,
) -> List[FusedBlocks]:
    """The students' and the teachers' blocks; all together where they are of one kind."""
    sides = list(zip(blocks, (students, teachers)))
    if kind_of(blocks[0][0], students[0]) == kind_of(blocks[1][0], teachers[0]):
        sides = [([*blocks[0], *blocks[1]], [*students, *teachers])]
    return [FusedBlocks(*side, wanted) for side in sides]


def _non_local_gradients(
    residuals: Sequence[Residual],
    factors: Sequence[torch.Tensor],
    a: torch.Tensor,
    student: BlockOutput,
    stacks: List[FusedBlocks],
) -> List[List[torch.Tensor]]:
    """
    Chain rule from the residuals ``E = A (1 + M) x + A m + a - r_T`` to all that they are made of.

    Args:
        residuals: of L levels, with the halved gradients of their squares.
        factors: (N,) of each level, that make of these the gradients of the norms.
        a: A, (L, C_t, C_s).
        student: of the students' blocks.
        stacks: from :func:`_stack`.

    Returns:
        See :func:`_non_local_norms`.
    """
    levels = len(residuals)
    factor = torch.stack(list(factors))[..., None]  # (L, N, 1)
    d_constant = torch.stack([r.bias for r in residuals]) * factor  # (L, N, C_t)
    # E x^T and, as the teacher's side is subtracted, - E t^T: (L, N, C_t, C)
    d_weight, d_teacher = (
        torch.stack([r.products[i] for r in residuals]) * sign[..., None]
        for i, sign in enumerate((factor, -factor))
    )
    # A stands before 1 + M, and before m
    d_a = (d_weight + d_weight @ student.matrix.mT).sum(1).baddbmm_(d_constant.mT, student.constant)
    d_matrix = [a.mT[:, None] @ d_weight, d_teacher]  # of M, the students' and the teachers'
    d_shift = [d_constant @ a, -d_constant]  # of m
    if len(stacks) == 1:
        d_matrix, d_shift = [torch.cat(d_matrix)], [torch.cat(d_shift)]
    d_maps = [r.map.mul_(f[:, None, None]) for r, f in zip(residuals, factors)]
    of_blocks = []
    for stack, *gradients in zip(stacks, d_matrix, d_shift, (d_maps, [])):
        of_blocks += stack.backward(*gradients)
    d_bias = d_constant.sum(1)
    return [
        [d_maps[i], d_a[i], d_bias[i], *of_blocks[i], *of_blocks[i + levels]] for i in range(levels)
    ]
