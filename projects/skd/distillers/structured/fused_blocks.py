"""
What is small of non-local blocks, for the loss in ``fused_non_local.py``, whose steps 2 and 4 these
are: from the moments of the maps to the blocks as matrices, and the gradients' way back.

Shape legend: B blocks, N images, C channels, P = H W positions of a feature map, k channels of an
embedding.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from .fused_block_map import BlockMap
from .fused_residual import MapList
from .non_local import NonLocalBlock


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
    The parameters of B blocks, as far as what is small needs them. Where widths differ, k is the
    largest: the others' matrices are padded with zeros, which stay zeros.
    """

    theta: torch.Tensor  # (B, k, C)
    theta_bias: torch.Tensor  # (B, k)
    out: torch.Tensor  # transposed, (B, k, C)
    out_bias: torch.Tensor  # (B, C)
    gamma: Optional[torch.Tensor] = None  # of batch norm, (B, C)
    beta: Optional[torch.Tensor] = None

    @classmethod
    def stacked(cls, blocks: Sequence[NonLocalBlock]) -> "Parameters":
        """Stack the blocks' parameters, without their graph."""
        norms = [block.norm for block in blocks]
        fields = [
            _stack_padded([block.theta.weight.flatten(1) for block in blocks]),
            _stack_padded([block.theta.bias for block in blocks]),
            _stack_padded([block.out.weight.flatten(1).t() for block in blocks]),
            torch.stack([block.out.bias for block in blocks]),
        ]
        if norms[0] is not None:
            fields += [torch.stack(t) for t in zip(*((n.weight, n.bias) for n in norms))]
        return cls(*(field.detach() for field in fields))


def _stack_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors (k_i, ...) as one (B, k, ...), with zeros after the shorter ones."""
    longest = max(len(t) for t in tensors)
    shortest = min(len(t) for t in tensors)
    zeros = tensors[0].new_zeros(longest - shortest, *tensors[0].shape[1:])
    parts = [part for t in tensors for part in (t, zeros[: longest - len(t)])]
    return torch.cat(parts).unflatten(0, (len(tensors), -1))


class Statistics(NamedTuple):
    """What batch norm has found in this batch, (B, C) each."""

    mean: torch.Tensor
    var: torch.Tensor

    def track(self, norms: Sequence[nn.BatchNorm2d], counts: Sequence[int]) -> None:
        """Update running statistics as batch norm does. ``counts``: of values of each block."""
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


def kind_of(block: NonLocalBlock, x: torch.Tensor) -> Tuple:
    """What has to be equal for blocks, and their maps (N, C, H, W), to be computed at once."""
    norm = block.norm
    kind = None if norm is None else (norm.training, norm.eps, norm.momentum)
    return x.shape[:2], kind


class BlockOutput(NamedTuple):
    """
    Blocks as maps see them, ``r = (1 + M) x + m``: what :func:`mixing` gives, with theta put in.

    matrix: M = V Theta, (B, N, C, C).
    constant: m, (B, N, C).
    mixed: V, (B, N, C, k).
    """

    matrix: torch.Tensor
    constant: torch.Tensor
    mixed: torch.Tensor

    def of(self, blocks: slice) -> "BlockOutput":
        """The output of some of the blocks, without their graph."""
        return BlockOutput(*(t.detach()[blocks] for t in self))


class FusedBlocks:
    """
    Non-local blocks on their maps, B of them: what is small, for all at once, left to autograd.

    Attributes:
        maps: what is large.
        moments: of the maps.
        cross: ``theta x^T / P``, where theta has no mean, (B, N, k, C); zeros where batch norm
            takes no statistics.
        output: with the graph to moments and parameters.
    """

    def __init__(self, blocks: Sequence[NonLocalBlock], maps: MapList, wanted: bool):
        self.parameters = parameters = Parameters.stacked(blocks)
        self.maps = [BlockMap(x, b.theta.out_channels, b.key_stride) for x, b in zip(maps, blocks)]
        norms = [block.norm for block in blocks]
        takes_statistics = norms[0] is not None and norms[0].training
        self.moments, self.cross = self._read_maps(blocks, maps, takes_statistics)
        self.leaves = [
            t.requires_grad_(wanted) for t in (*self.moments, *parameters) if t is not None
        ]
        with torch.set_grad_enabled(wanted):
            v, constant, found = mixing(self.moments, parameters, norms)
            # not a product: that could round to TF32, which stands for no convolution here
            constant = constant + (v * parameters.theta_bias[:, None, None]).sum(3)
            self.output = BlockOutput(v @ parameters.theta[:, None], constant, v)
        if found is not None:
            found.track(norms, [x[:, 0].numel() for x in maps])

    def _read_maps(
        self, blocks: Sequence[NonLocalBlock], maps: MapList, takes_statistics: bool
    ) -> Tuple[Moments, torch.Tensor]:
        """The moments, and :attr:`cross`; each map is read once."""
        theta, n = self.parameters.theta, len(maps[0])
        relation, cross = (
            theta.new_zeros(len(blocks), n, theta.shape[1], size) for size in theta.shape[1:]
        )
        mean = theta.new_empty(len(blocks), n, theta.shape[2])
        for x, out in zip(maps, mean):
            torch.mean(x.flatten(2), 2, dtype=mean.dtype, out=out)
        minus_mean = -(mean @ theta.mT)[..., None]  # of theta without its bias
        # phi and g of a block as one matrix, and of all blocks one below the other: (sum 2 k, C)
        inner, inner_bias = (
            torch.cat(t).split([2 * x.k for x in self.maps])
            for t in zip(*((conv.weight, conv.bias) for b in blocks for conv in (b.phi, b.g)))
        )
        for i, x in enumerate(self.maps):
            own = theta[i, : x.k], inner[i].flatten(1), inner_bias[i]
            own_cross = cross[i, :, : x.k] if takes_statistics else None
            x.read(*own, minus_mean[i, :, : x.k], relation[i, :, : x.k, : x.k], own_cross)
        cov = cross @ theta.mT[:, None] if takes_statistics else None
        return Moments(relation, mean, cov), cross

    def backward(
        self, d_matrix: torch.Tensor, d_constant: torch.Tensor, d_maps: MapList
    ) -> List[List[torch.Tensor]]:
        """
        Args:
            d_matrix, d_constant: gradients of M, (B, N, C, C), and m, (B, N, C).
            d_maps: of the first so many maps, (N, C, P): what goes through the moments is added.

        Returns:
            The gradients of each block's parameters, in their order.
        """
        d_moments, d_parameters = self._backward_small(d_matrix, d_constant)
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

    def _backward_small(self, *d_output: torch.Tensor) -> Tuple[Moments, Parameters]:
        """Gradients of moments and parameters from those of M and m, by autograd."""
        found = torch.autograd.grad(self.output[:2], self.leaves, d_output, allow_unused=True)
        found = [torch.zeros_like(x) if d is None else d for x, d in zip(self.leaves, found)]
        of_leaf = dict(zip(map(id, self.leaves), found))
        return tuple(
            type(kind)(*(of_leaf.get(id(x)) for x in kind))
            for kind in (self.moments, self.parameters)
        )
