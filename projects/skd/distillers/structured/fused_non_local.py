"""
The non-local loss of two blocks without their outputs: see ``fused_residual.py``, whose legend
holds here.

``r = x + BN(W y)`` of the whole map would be needed four times over (theta, y, W y and r). But
once some small tensors are known, the :class:`Moments`, a block is linear in its map:

    r = x + V (Theta x + b) + c,   V (N, C, k) and c (N, C) from the moments and the parameters

so that L_NL is the norm of a residual. In order:

1. :class:`_FusedBlock` reads each map once, chunk by chunk, for its moments: pooled keys, mean,
   and the covariance of theta, from which the statistics of batch norm follow. Saved: where the
   maxima of the pools were, and theta without its mean, (N, k, P); k is half of C or less.
2. :func:`mixing` makes V and c, with autograd, from detached leaves: all of this is small.
3. :func:`residual` reads the maps once more for the loss and the gradients of V, c and the maps.
4. :meth:`_FusedBlock.backward`: autograd leads the gradients of V and c to moments and
   parameters; those of the moments are led to the maps by hand, chunk by chunk. Recomputed: none
   of the large products of step 1.

The student's gradient comes from 3 (direct) and 4 (through the moments); it is complete before
backward begins, and is what is saved.
"""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..attention import reduce_squares
from .fused_residual import chunks, residual, saved_gradients, unshared
from .non_local import Block, pooling_window, relation
from .precision import like_convolutions


class Moments(NamedTuple):
    """
    All that a block's output depends on besides its parameters and the map itself.

    keys: phi and g after pooling, (N, 2 k, n).
    mean: of the map, (N, C).
    cov: covariance of theta, (N, k, k); None where batch norm takes no statistics.
    """

    keys: torch.Tensor
    mean: torch.Tensor
    cov: Optional[torch.Tensor]


def mixing(
    moments: Moments, block: Block, norm: Optional[nn.BatchNorm2d], positions: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    The block as a matrix: ``r = x + V theta + c``. The statistics of batch norm follow from the
    mean and the covariance of theta, so neither y nor W y is made.

    Args:
        moments, block, norm: of the block.
        positions: P.

    Returns:
        V (N, C, k) and c (N, C).
    """
    v = block.out @ relation(*moments.keys.chunk(2, dim=1))
    if norm is None:
        return v, block.out_bias.expand_as(moments.mean)
    if not norm.training:
        scale = block.gamma * torch.rsqrt(norm.running_var + norm.eps)
        constant = (block.out_bias - norm.running_mean) * scale + block.beta
        return v * scale[:, None], constant.expand_as(moments.mean)
    # variances of large maps overflow: take them of V divided by a power of two, which is exact
    largest = v.detach().abs().amax().clamp_min(1.0)
    unit = largest / torch.frexp(largest).mantissa
    w = v / unit
    k = v.shape[2]
    mean_theta = moments.mean @ block.project[:k].t() + block.project_bias[:k]
    means = (w @ mean_theta[:, :, None]).squeeze(2)  # of each image's W y
    # of positions that are all alike, rounding may leave less than nothing
    within = ((w @ moments.cov) * w).sum(2).clamp_min(0)
    var = within.mean(0) + means.var(0, unbiased=False)
    mean = means.mean(0) * unit + block.out_bias
    scale = block.gamma * torch.rsqrt(var + norm.eps / unit**2) / unit
    _track(norm, mean.detach(), var.detach() * unit**2, len(v) * positions)
    constant = (block.out_bias - mean) * scale + block.beta
    return v * scale[:, None], constant.expand_as(moments.mean)


def _track(norm: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
    """Running statistics, as batch norm itself keeps them."""
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        unbiased = var * (count / max(count - 1, 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)


class NonLocalNorm(torch.autograd.Function):
    """
    Norm of ``conv(r_S) - r_T`` for the outputs r of two non-local blocks: L_NL.

    With the convolution ``A x + a`` and the student's block as a matrix, ``conv(r_S)`` is
    ``W_S x + const`` with ``W_S = A (1 + V Theta)``: one product with the map instead of three.
    """

    @staticmethod
    @like_convolutions
    def forward(
        ctx, student, teacher, weight, bias, settings, reduction, stride, loss_weight, *parameters
    ):
        """
        Args:
            student, teacher: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teacher.
            weight, bias: of the 1x1 convolution, (C_t, C_s, 1, 1) and (C_t,).
            settings: (norm, key_stride) of the student's block, then of the teacher's.
            reduction, stride: see ``difference_norm``.
            loss_weight: the norm is multiplied with.
            parameters: the fields of the student's :class:`Block`, then of the teacher's.
        """
        wanted, ctx.is_leaf = any(ctx.needs_input_grad), student.is_leaf
        size = student.shape[-2:]
        x, t = student.flatten(2), teacher.flatten(2)
        half = len(Block._fields)
        student_block = _FusedBlock(x, Block(*parameters[:half]), *settings[0], size, wanted)
        teacher_block = _FusedBlock(t, Block(*parameters[half:]), *settings[1], size, wanted)
        with torch.set_grad_enabled(wanted):
            a, a_bias = _detached_leaf(weight.flatten(1), wanted), _detached_leaf(bias, wanted)
            v, theta, b, c = student_block.output()
            w_s, constant_s = a + (a @ v) @ theta, a_bias + (c + v @ b) @ a.t()
            v, theta, b, c = teacher_block.output()
            w_t, constant_t = v @ theta, c + v @ b
        # The teacher's side stays two products of width k, V (Theta t - Theta mean) + w_t mean:
        # the bracket is there already from the moments, and w_t would be a product of width C.
        mean = (w_t.detach() @ teacher_block.moments.mean.detach()[:, :, None]).squeeze(2)
        result = residual(
            [(w_s.detach(), x), (-v.detach(), teacher_block.centered)],
            (constant_s - constant_t).detach() - mean, t, None, [x, t] if wanted else None,
        )  # fmt: skip
        value, factor = reduce_squares(result.squares, reduction, stride, size, loss_weight)
        if not wanted:
            return value
        d_w_s, d_w_t = (m.mul_(factor[:, None, None]) for m in result.products)
        d_constant = result.bias.mul_(factor[:, None])
        d_block_t, _ = teacher_block.backward([w_t, constant_t], [-d_w_t, -d_constant])
        d_student = result.map.mul_(factor[:, None, None])
        d_block_s, (d_weight, d_bias) = student_block.backward(
            [w_s, constant_s], [d_w_s, d_constant], (a, a_bias), d_student
        )
        ctx.save_for_backward(
            unshared(d_student, student), d_weight.view_as(weight), d_bias, *d_block_s, *d_block_t
        )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_student, d_weight, d_bias, *rest = saved_gradients(grad, ctx)
        return (d_student, None, d_weight, d_bias, None, None, None, None, *rest)


def _detached_leaf(t: Optional[torch.Tensor], wanted: bool) -> Optional[torch.Tensor]:
    """Where the small graph within ``forward`` begins."""
    return None if t is None else t.detach().requires_grad_(wanted)


class _FusedBlock:
    """
    The student's or the teacher's non-local block on its map. What is large is computed here, and
    its gradient too, chunk by chunk; what lies between is small and left to autograd.
    """

    def __init__(self, x, block, norm, key_stride, size, wanted):
        self.x, self.norm = x, norm
        n, _, positions = x.shape
        k = self.k = block.out.shape[1]
        self.block = Block(*(_detached_leaf(p, wanted) for p in block))
        mean = x.mean(2)
        mean_theta = (mean @ block.project[:k].t())[:, :, None]
        height, width = size
        window = pooling_window(key_stride, height, width)
        self.row, self.row_keys = window[0] * width, width // window[1]  # of windows
        keys = x.new_empty(n, 2 * k, height // window[0] * self.row_keys)
        self.chosen = torch.empty_like(keys, dtype=torch.int64)  # within their chunk
        self.centered = x.new_empty(n, k, positions)  # Theta x - Theta mean
        takes_statistics = norm is not None and norm.training
        self.cross = x.new_zeros(n, k, x.shape[1]) if takes_statistics else None
        for rows, columns, of_keys in self._chunks():
            chunk = x[rows, :, columns]
            # theta, phi and g in one product, which reads the map once
            q = block.project.expand(len(chunk), -1, -1) @ chunk
            theta = self.centered[rows, :, columns]
            torch.sub(q[:, :k], mean_theta[rows], out=theta)
            if takes_statistics:
                # cov = theta theta^T / P = (theta x^T / P) Theta^T, and the bracket is what the
                # gradient of Theta needs
                self.cross[rows].baddbmm_(theta, chunk.transpose(1, 2), alpha=1 / positions)
            for image, *found in zip(
                q[:, k:], keys[rows, :, of_keys], self.chosen[rows, :, of_keys]
            ):
                pooled = F.max_pool2d(image.unflatten(1, (-1, width)), window, return_indices=True)
                for into, values in zip(found, pooled):
                    into.copy_(values.flatten(1))
        keys += block.project_bias[k:, None]  # after pooling: a constant moves no maximum
        cov = self.cross @ block.project[:k].t() if takes_statistics else None
        self.moments = Moments(*(_detached_leaf(m, wanted) for m in (keys, mean, cov)))

    def _chunks(self) -> Iterator[Tuple[slice, slice, slice]]:
        """Images, positions, and the keys found there. No window is cut."""
        for rows, columns in chunks(self.x, self.row):
            first, last = columns.start // self.row, columns.stop // self.row
            yield rows, columns, slice(first * self.row_keys, last * self.row_keys)

    def output(self) -> Tuple[torch.Tensor, ...]:
        """V, Theta, b and c of ``r = x + V (Theta x + b) + c``."""
        v, constant = mixing(self.moments, self.block, self.norm, self.x.shape[2])
        return v, self.block.project[: self.k], self.block.project_bias[: self.k], constant

    def backward(self, outputs, d_outputs, more=(), d_map=None):
        """
        Args:
            outputs, d_outputs: what was made of :meth:`output`, and its gradients.
            more: further leaves of it.
            d_map: gradient of the block's map, (N, C, P), that what goes through the moments is
                accumulated into; None if it is not wanted.

        Returns:
            Gradients of the block's parameters, and of ``more``.
        """
        leaves = [*self.moments, *self.block, *more]
        present = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, present, d_outputs, allow_unused=True))
        gradients = [None if leaf is None else next(found) for leaf in leaves]
        d_keys, d_mean, d_cov, d_project, d_project_bias, *rest = gradients
        n, _, positions = self.x.shape
        k, project = self.k, self.block.project.detach()
        d_project_bias[k:] += d_keys.sum((0, 2))
        back = project[k:].t().expand(n, -1, -1)
        if d_cov is not None:  # cov = theta theta^T / P, of theta without its mean
            d_theta = d_cov + d_cov.transpose(1, 2)
            d_project[:k] += (d_theta @ self.cross).sum(0)
            back = torch.cat([project[:k].t() @ d_theta / positions, back], dim=2)
        for rows, columns, of_keys in self._chunks():
            chunk = self.x[rows, :, columns]
            # of phi and g before pooling: zero but for the positions that were the maxima
            d_inner = chunk.new_zeros(len(chunk), 2 * k, chunk.shape[2])
            d_inner.scatter_(2, self.chosen[rows, :, of_keys], d_keys[rows, :, of_keys])
            d_project[k:] += torch.bmm(d_inner, chunk.transpose(1, 2)).sum(0)
            if d_map is None:
                continue
            into = d_map[rows, :, columns]
            if d_mean is not None:
                into += (d_mean[rows] / positions)[:, :, None]
            if d_cov is not None:  # theta joins them, so that the map is written once
                d_inner = torch.cat([self.centered[rows, :, columns], d_inner], dim=1)
            into.baddbmm_(back[rows], d_inner)
        fields = len(Block._fields) - 2
        return [d_project, d_project_bias, *rest[:fields]], rest[fields:]
