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
4. :meth:`_FusedBlocks.backward`: autograd leads the gradients of V and c to moments and
   parameters; those of the moments are led to the maps by hand, chunk by chunk. Recomputed: none
   of the large products of step 1.

What is small is done for all blocks of as many channels at once, B of them, student's and
teacher's at several levels: a GPU needs as long for one as for all, and its host too.

The student's gradient comes from 3 (direct) and 4 (through the moments); it is complete before
backward begins, and is what is saved.
"""

import itertools
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from .fused_block_map import BlockMap
from .fused_residual import Known, MapList, Norm, asked_for, residual
from .non_local import NonLocalBlock
from .precision import products_like_convolutions


class Moments(NamedTuple):
    """
    All that the output of blocks depends on besides their parameters and the maps themselves.

    relation: ``g phi^T / n`` of phi and g at n keys, (B, N, k, k).
    mean: of the map, (B, N, C).
    cov: covariance of theta, (B, N, k, k); None where batch norm takes no statistics.
    """

    relation: torch.Tensor
    mean: torch.Tensor
    cov: Optional[torch.Tensor]


class Parameters(NamedTuple):
    """
    Of B blocks, as far as what is small needs them. Where widths differ, k is the largest: the
    others' matrices are filled up with zeros, which stay zeros.
    """

    theta: torch.Tensor  # (B, k, C)
    theta_bias: torch.Tensor  # (B, k)
    out: torch.Tensor  # transposed, (B, k, C)
    out_bias: torch.Tensor  # (B, C)
    gamma: Optional[torch.Tensor] = None  # of batch norm, (B, C)
    beta: Optional[torch.Tensor] = None

    @classmethod
    def stacked(cls, blocks: Sequence[NonLocalBlock]) -> "Parameters":
        """Without their graph."""
        norms = [block.norm for block in blocks]
        fields = [
            _filled_up([block.theta.weight.flatten(1) for block in blocks]),
            _filled_up([block.theta.bias for block in blocks]),
            _filled_up([block.out.weight.flatten(1).t() for block in blocks]),
            torch.stack([block.out.bias for block in blocks]),
        ]
        if norms[0] is not None:
            fields += [torch.stack(t) for t in zip(*((n.weight, n.bias) for n in norms))]
        return cls(*(field.detach() for field in fields))


def _filled_up(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stacked, with zeros after the shorter ones."""
    longest = max(len(t) for t in tensors)
    shortest = min(len(t) for t in tensors)
    zeros = tensors[0].new_zeros(longest - shortest, *tensors[0].shape[1:])
    parts = [part for t in tensors for part in (t, zeros[: longest - len(t)])]
    return torch.cat(parts).unflatten(0, (len(tensors), -1))


class Statistics(NamedTuple):
    """Of batch norm, (B, C) each."""

    mean: torch.Tensor
    var: torch.Tensor

    def track(self, norms: Sequence[nn.BatchNorm2d], counts: Sequence[int]) -> None:
        """Running statistics, as batch norm itself keeps them. ``counts``: of values."""
        momentum = norms[0].momentum
        unbiased = torch._foreach_mul(self.var.unbind(), [n / max(n - 1, 1) for n in counts])
        torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
        torch._foreach_lerp_([norm.running_mean for norm in norms], self.mean.unbind(), momentum)
        torch._foreach_lerp_([norm.running_var for norm in norms], unbiased, momentum)


def mixing(
    moments: Moments, block: Parameters, norms: Sequence[Optional[nn.BatchNorm2d]]
) -> Tuple[torch.Tensor, torch.Tensor, Optional[Statistics]]:
    """
    The blocks as matrices: ``r = x + V theta + c``. The statistics of batch norm follow from the
    mean and the covariance of theta, so neither y nor W y is made.

    Args:
        moments, block, norms: of the blocks.

    Returns:
        V (B, N, C, k), c (B, 1, C), and what batch norm has found.
    """
    v = block.out.mT[:, None] @ moments.relation
    norm = norms[0]
    if norm is None:
        return v, block.out_bias[:, None], None
    if not norm.training:
        mean, var = (
            torch.stack([getattr(n, f"running_{s}") for n in norms]) for s in ("mean", "var")
        )
        scale = block.gamma * torch.rsqrt(var + norm.eps)
        constant = (block.out_bias - mean) * scale + block.beta
        return v * scale[:, None, :, None], constant[:, None], None
    # variances of large maps overflow: take them of V times a power of two, which is exact
    largest = torch.linalg.vector_norm(v.detach(), torch.inf, dim=(1, 2, 3)).clamp_min_(1.0)
    unit = (torch.frexp(largest).mantissa / largest)[:, None]
    w = v * unit[..., None, None]
    mean_theta = torch.baddbmm(block.theta_bias[:, None], moments.mean, block.theta.mT)
    means = (w @ mean_theta[..., None]).squeeze(3)  # of each image's W y, without its bias
    mean = means.mean(1)
    within = ((w @ moments.cov) * w).sum(3)
    # of positions that are all alike, rounding may leave less than nothing
    var = (within + (means - mean[:, None]).square()).mean(1).clamp_min(0)
    scale = block.gamma * torch.rsqrt(torch.addcmul(var, unit, unit, value=norm.eps))
    # the bias is a part of the mean, and goes with it
    constant = torch.addcmul(block.beta, mean, scale, value=-1)
    found = Statistics(mean.detach() / unit + block.out_bias.detach(), var.detach() / unit**2)
    return w * scale[:, None, :, None], constant[:, None], found


def alike(block: NonLocalBlock, x: torch.Tensor) -> Tuple:
    """What has to be equal for blocks to be computed at once."""
    norm = block.norm
    kind = None if norm is None else (norm.training, norm.eps, norm.momentum)
    return x.shape[:2], kind


def non_local_norms(
    students: MapList,
    teachers: MapList,
    convs: Sequence[nn.Conv2d],
    blocks: Tuple[Sequence[NonLocalBlock], Sequence[NonLocalBlock]],
    norm: Norm,
) -> List[Known]:
    """
    Norms of ``conv(r_S) - r_T`` for the outputs r of two non-local blocks: L_NL of several levels.

    With the convolution ``A x + a`` and the student's block as ``(1 + M) x + m``, ``conv(r_S)`` is
    ``A (1 + M) x + A m + a``: one product with the map instead of three.

    Args:
        students, teachers: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teachers'.
        convs: 1x1, from C_s to C_t.
        blocks: the students', which are :func:`alike`, and the teachers', which are.
        norm: with a stride for each level.
    """
    inputs = [
        [x, conv.weight, conv.bias, *s.parameters(), *t.parameters()]
        for x, conv, s, t in zip(students, convs, *blocks)
    ]
    wanted = asked_for(*itertools.chain(*inputs))
    with torch.no_grad(), products_like_convolutions(students[0].device):
        values, gradients = _non_local_norms(students, teachers, convs, blocks, norm, wanted)
    return [Known(*known) for known in zip(values.unbind(), inputs, gradients)]


def _non_local_norms(students, teachers, convs, blocks, norm, wanted):
    levels = len(convs)
    sides = list(zip(blocks, (students, teachers)))
    if alike(blocks[0][0], students[0]) == alike(blocks[1][0], teachers[0]):
        sides = [([*blocks[0], *blocks[1]], [*students, *teachers])]
    stacks = [_FusedBlocks(*side, wanted) for side in sides]
    # students come first, teachers last
    (m_s, k_s, _), (m_t, k_t, v_t) = (
        [t.detach()[part] for t in stacks[i].output]
        for i, part in ((0, slice(levels)), (-1, slice(-levels, None)))
    )
    a = torch.stack([conv.weight.flatten(1) for conv in convs])
    a_bias = torch.stack([conv.bias for conv in convs])[:, None]
    w_s = a[:, None] + a[:, None] @ m_s
    # The teacher's side stays a product of width k, V (Theta t - Theta mean) + M mean: the bracket
    # is there already from the moments, and M t would be a product of width C.
    mean_t = stacks[-1].moments.mean.detach()[-levels:]
    constant = torch.baddbmm(a_bias, k_s, a.mT) - k_t - (m_t @ mean_t[..., None]).squeeze(3)
    minus_v, found = -v_t, []
    for i in range(levels):
        x, t = students[i].flatten(2), teachers[i].flatten(2)
        centered = stacks[-1].maps[i - levels].centered
        terms = [(w_s[i], x), (minus_v[i, :, :, : centered.shape[1]], centered)]
        found.append(residual(terms, constant[i], t, None, [x, t] if wanted else None))
    values, factors = norm([r.norms for r in found], [x.shape[-2:] for x in students])
    if not wanted:
        return values, [None] * levels
    factor = torch.stack(factors)[..., None]
    d_constant = torch.stack([r.bias for r in found]) * factor
    d_w_s, d_w_t = (
        torch.stack([r.products[i] for r in found]) * sign[..., None]
        for i, sign in enumerate((factor, -factor))
    )
    d_a = (d_w_s + d_w_s @ m_s.mT).sum(1).baddbmm_(d_constant.mT, k_s)
    d_m = [a.mT[:, None] @ d_w_s, d_w_t]
    d_k = [d_constant @ a, -d_constant]
    if len(stacks) == 1:
        d_m, d_k = [torch.cat(d_m)], [torch.cat(d_k)]
    d_maps = [r.map.mul_(f[:, None, None]) for r, f in zip(found, factors)]
    of_blocks = []
    for stack, *gradients in zip(stacks, d_m, d_k, (d_maps, [])):
        of_blocks += stack.backward(*gradients)
    d_bias = d_constant.sum(1)
    return values, [
        [d_maps[i], d_a[i], d_bias[i], *of_blocks[i], *of_blocks[i + levels]] for i in range(levels)
    ]


class _FusedBlocks:
    """
    Non-local blocks on their maps, B of them: what is small, for all at once, left to autograd.

    Attributes:
        maps: what is large.
        moments: of the maps.
        output: M, m and V of ``r = (1 + M) x + m``: (B, N, C, C), (B, N, C) and (B, N, C, k).
    """

    def __init__(self, blocks: Sequence[NonLocalBlock], maps: MapList, wanted: bool):
        self.parameters = parameters = Parameters.stacked(blocks)
        self.maps = [BlockMap(x, b.theta.out_channels, b.key_stride) for x, b in zip(maps, blocks)]
        norms, theta, n = [b.norm for b in blocks], parameters.theta, len(maps[0])
        takes_statistics = norms[0] is not None and norms[0].training
        relation, self.cross = (
            theta.new_zeros(len(blocks), n, theta.shape[1], size) for size in theta.shape[1:]
        )
        mean = theta.new_empty(len(blocks), n, theta.shape[2])
        for x, out in zip(maps, mean):
            torch.mean(x.flatten(2), 2, dtype=mean.dtype, out=out)
        minus_mean = -(mean @ theta.mT)[..., None]  # of theta without its bias
        inner, inner_bias = (
            torch.cat(t).split([2 * x.k for x in self.maps])
            for t in zip(*((conv.weight, conv.bias) for b in blocks for conv in (b.phi, b.g)))
        )
        for i, x in enumerate(self.maps):
            cross = self.cross[i, :, : x.k] if takes_statistics else None
            own = theta[i, : x.k], inner[i].flatten(1), inner_bias[i]
            x.read(*own, minus_mean[i, :, : x.k], relation[i, :, : x.k, : x.k], cross)
        cov = self.cross @ theta.mT[:, None] if takes_statistics else None
        self.moments = Moments(relation, mean, cov)
        self.leaves = [
            t.requires_grad_(wanted) for t in (*self.moments, *parameters) if t is not None
        ]
        with torch.set_grad_enabled(wanted):
            v, constant, found = mixing(self.moments, parameters, norms)
            # not a product: that could round to TF32, which stands for no convolution here
            constant = constant + (v * parameters.theta_bias[:, None, None]).sum(3)
            self.output = v @ theta[:, None], constant, v
        if found is not None:
            found.track(norms, [x[:, 0].numel() for x in maps])

    def backward(
        self, d_matrix: torch.Tensor, d_constant: torch.Tensor, d_maps: MapList
    ) -> List[List[torch.Tensor]]:
        """
        Args:
            d_matrix, d_constant: gradients of M and m.
            d_maps: of the first so many maps, (N, C, P): what goes through the moments is added.

        Returns:
            The gradients of each block's parameters, in their order.
        """
        d_moments, d_parameters = self._lead_back(d_matrix, d_constant)
        to_maps = [None] * len(d_maps)
        if d_moments.cov is not None:  # theta theta^T / P, of theta without its mean
            d_cov = d_moments.cov + d_moments.cov.mT
            d_parameters.theta.add_((d_cov @ self.cross).sum(1))
            students = slice(len(d_maps))
            to_maps = self.parameters.theta[students].detach().mT[:, None] @ d_cov[students]
        widths = [2 * x.k for x in self.maps]
        d_inner, d_inner_bias = (
            d_constant.new_empty(d_constant.shape[1], sum(widths), *size)
            for size in (d_constant.shape[2:], ())
        )
        for i, (x, *inner) in enumerate(
            zip(self.maps, d_inner.split(widths, 1), d_inner_bias.split(widths, 1))
        ):
            of_map = (d_maps[i], d_moments.mean[i], to_maps[i]) if i < len(d_maps) else ()
            x.backward(d_moments.relation[i, :, : x.k, : x.k], *inner, *of_map)
        d_inner, d_inner_bias = (d.sum(0).split(widths) for d in (d_inner, d_inner_bias))
        return [
            self._of_block(i, d_parameters, d_inner[i], d_inner_bias[i])
            for i in range(len(self.maps))
        ]

    def _of_block(
        self, i: int, d_parameters: Parameters, d_inner: torch.Tensor, d_inner_bias: torch.Tensor
    ) -> List[torch.Tensor]:
        """The gradients of one block's parameters, in their order."""
        k = self.maps[i].k
        d = Parameters(*(None if x is None else x[i] for x in d_parameters))
        inner = [t for pair in zip(d_inner.split(k), d_inner_bias.split(k)) for t in pair]
        norm = [] if d.gamma is None else [d.gamma, d.beta]
        return [
            d.theta[:k],
            d.theta_bias[:k],
            *inner,
            d.out[:k].t().contiguous(),
            d.out_bias,
            *norm,
        ]

    def _lead_back(self, *d_output: torch.Tensor) -> Tuple[Moments, Parameters]:
        found = torch.autograd.grad(self.output[:2], self.leaves, d_output, allow_unused=True)
        found = [torch.zeros_like(x) if d is None else d for x, d in zip(self.leaves, found)]
        of_leaf = dict(zip(map(id, self.leaves), found))
        return tuple(
            type(kind)(*(of_leaf.get(id(x)) for x in kind))
            for kind in (self.moments, self.parameters)
        )
