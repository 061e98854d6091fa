"""
The two losses that compare whole feature maps, without keeping a map for backward.

Each is the norm of a residual that is linear in a few maps, ``sum_i W_i X_i + b - T``. Portion by
portion, the residual is made, measured, turned into the gradients and thrown away, in the forward
pass: what is kept until backward is the student's gradient itself. Gradients of the matrices
``W_i`` are then led further by autograd, because these are small.

Shape legend: N images, C channels, P = H W positions of a feature map, k channels of an embedding.
"""

import itertools
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .attention import channel_attention, reduce_squares, spatial_attention

# Of a residual in memory at one time: as much as stays in a CPU's cache; for a GPU, large products.
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}


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
    elements = CHUNK_ELEMENTS.get(target.device.type, CHUNK_ELEMENTS["cuda"])
    images, positions = min(n, max(1, elements // (c * p))), min(p, max(1, elements // c))
    buffer = target.new_empty(images * c * positions)  # fresh memory is slow on a CPU
    squares = target.new_zeros(n)
    out = Residual(squares)
    if products is not None:
        out = Residual(
            squares,
            [target.new_zeros(n, c, y.shape[1]) for y in products],
            target.new_zeros(n, c),
            torch.empty_like(terms[0][1]),
        )
    for i, j in itertools.product(range(0, n, images), range(0, p, positions)):
        rows, columns = slice(i, i + images), slice(j, j + positions)

        def portion(x):
            return x[rows, :, columns]

        part = portion(target)
        e = buffer[: part.numel()].view(part.shape)
        torch.baddbmm(bias[rows], terms[0][0][rows], portion(terms[0][1]), out=e)
        for w, x in terms[1:]:
            e.baddbmm_(w[rows], portion(x))
        e.sub_(part)
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
    Spatial and channel attention of a map, whose gradient is made as one map instead of four.
    """

    @staticmethod
    def forward(ctx, x, pool):
        """(N, C, H, W) and a name in ``POOLS`` -> (N, H, W) and (N, C)."""
        ctx.pool = pool
        ctx.save_for_backward(x)
        return spatial_attention(x, pool), channel_attention(x, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_space, d_channels):
        (x,) = ctx.saved_tensors
        _, c, h, w = x.shape
        d = (d_space / c)[:, None] + (d_channels / (h * w))[:, :, None, None]
        return d.mul_(x.sign()) if ctx.pool == "abs" else d, None


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
                result.map.mul_(factor[:, None, None]).view_as(student),
                (result.products[0] * factor[:, None, None]).sum(0).view_as(weight),
                (result.bias * factor[:, None]).sum(0),
            )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_student, d_weight, d_bias = _times(grad, ctx)
        return d_student, None, d_weight, d_bias, None, None, None, None


class Block(NamedTuple):
    """Parameters and settings of a :class:`NonLocalBlock` with dot-product affinity."""

    project: torch.Tensor  # theta, phi and g as one, (3 k, C)
    project_bias: torch.Tensor  # (3 k,)
    out: torch.Tensor  # (C, k)
    out_bias: torch.Tensor  # (C,)
    gamma: Optional[torch.Tensor]  # of batch norm, (C,)
    beta: Optional[torch.Tensor]


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
    The block as a matrix: ``r = x + V theta + c``.

    Without softmax the affinity ``f = theta^T phi / n`` to n keys need not be formed:
    ``y = (g phi^T / n) theta``. The statistics of batch norm, too, follow from the mean and the
    covariance of theta, so neither y nor W y is made.

    Args:
        moments, block, norm: of the block.
        positions: P.

    Returns:
        V (N, C, k) and c (N, C).
    """
    phi, g = moments.keys.chunk(2, dim=1)
    v = block.out @ (g @ phi.transpose(1, 2) / phi.shape[2])
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
    k = phi.shape[1]
    mean_theta = moments.mean @ block.project[:k].t() + block.project_bias[:k]
    means = (w @ mean_theta[:, :, None]).squeeze(2)  # of each image's W y
    var = ((w @ moments.cov) * w).sum(2).mean(0) + means.var(0, unbiased=False)
    mean = means.mean(0) * unit + block.out_bias
    scale = block.gamma * torch.rsqrt(var + norm.eps / unit**2) / unit
    _track(norm, mean.detach(), var.detach() * unit**2, len(v) * positions)
    constant = (block.out_bias - mean) * scale + block.beta
    return v * scale[:, None], constant.expand_as(moments.mean)


def _track(norm: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        unbiased = var * (count / max(count - 1, 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)


class NonLocalNorm(torch.autograd.Function):
    """
    Norm of ``conv(r_S) - r_T`` for the outputs r of two non-local blocks: L_NL.

    A block is linear in its map, given its moments: ``r = (1 + V Theta) x + V b + c``. Of the
    student's the convolution makes one matrix more.
    """

    @staticmethod
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
            a, a_bias = _leaf(weight.flatten(1), wanted), _leaf(bias, wanted)
            v, theta, b, c = student_block.output()
            w_s, constant_s = a + (a @ v) @ theta, a_bias + (c + v @ b) @ a.t()
            v, theta, b, c = teacher_block.output()
            w_t, constant_t = v @ theta, c + v @ b
        # w_t t = V (Theta t - Theta mean) + w_t mean, and the bracket is there already
        mean = (w_t.detach() @ teacher_block.moments.mean.detach()[:, :, None]).squeeze(2)
        result = residual(
            [(w_s.detach(), x), (-v.detach(), teacher_block.centred)],
            (constant_s - constant_t).detach() - mean, t, None, [x, t] if wanted else None,
        )  # fmt: skip
        value, factor = reduce_squares(result.squares, reduction, stride, size, loss_weight)
        if not wanted:
            return value
        d_w_s, d_w_t = (m.mul_(factor[:, None, None]) for m in result.products)
        d_constant = result.bias.mul_(factor[:, None])
        d_block_t, _ = teacher_block.backward([w_t, constant_t], [-d_w_t, -d_constant])
        d_block_s, (d_weight, d_bias) = student_block.backward(
            [w_s, constant_s], [d_w_s, d_constant], a, a_bias
        )
        d_student = student_block.add_map_gradient(result.map, factor)
        ctx.save_for_backward(
            d_student.view_as(student), d_weight.view_as(weight), d_bias, *d_block_s, *d_block_t
        )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_student, d_weight, d_bias, *rest = _times(grad, ctx)
        return (d_student, None, d_weight, d_bias, None, None, None, None, *rest)


def _times(grad: torch.Tensor, ctx) -> List[Optional[torch.Tensor]]:
    """
    The saved gradients, the map's first, times that of the loss. That is 1 as a rule, and a CPU is
    then spared a map; a GPU would have to wait to see it, and a leaf would keep the saved one.
    """
    d_map, *rest = ctx.saved_tensors
    if ctx.is_leaf or grad.device.type != "cpu" or grad != 1:
        d_map = d_map * grad
    return [d_map, *(None if d is None else d * grad for d in rest)]


def _leaf(t: Optional[torch.Tensor], wanted: bool) -> Optional[torch.Tensor]:
    return None if t is None else t.detach().requires_grad_(wanted)


class _FusedBlock:
    """
    The student's or the teacher's non-local block on its map. What is large is computed here, and
    its gradient too; what lies between is small and left to autograd.
    """

    def __init__(self, x, block, norm, key_stride, size, wanted):
        self.x, self.norm = x, norm
        n, _, positions = x.shape
        k = self.k = block.out.shape[1]
        self.block = Block(*(_leaf(p, wanted) for p in block))
        mean = x.mean(2)
        # theta without its mean, phi and g
        shift = torch.cat(
            [-(mean @ block.project[:k].t()), block.project_bias[k:].expand(n, -1)], dim=1
        )
        self.q = torch.baddbmm(shift[:, :, None], block.project.expand(n, -1, -1), x)
        window = (min(key_stride, size[0]), min(key_stride, size[1]))  # a map may be smaller
        pooled = [
            F.max_pool2d(image.unflatten(1, tuple(size)), window, return_indices=True)
            for image in self.q[:, k:]
        ]
        keys, self.chosen = (torch.stack(part).flatten(2) for part in zip(*pooled))
        self.cross = cov = None
        if norm is not None and norm.training:
            self.cross = (self.centred @ x.transpose(1, 2)).div_(positions)
            cov = self.cross @ block.project[:k].t()
        self.moments = Moments(*(_leaf(m, wanted) for m in (keys, mean, cov)))

    @property
    def centred(self) -> torch.Tensor:
        """Theta x - Theta mean, (N, k, P)."""
        return self.q[:, : self.k]

    def output(self) -> Tuple[torch.Tensor, ...]:
        """V, Theta, b and c of ``r = x + V (Theta x + b) + c``."""
        v, constant = mixing(self.moments, self.block, self.norm, self.x.shape[2])
        return v, self.block.project[: self.k], self.block.project_bias[: self.k], constant

    def backward(self, outputs, d_outputs, *more):
        """Gradients of the block's parameters, and of ``more``. Overwrites phi and g."""
        leaves = [*self.moments, *self.block, *more]
        present = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, present, d_outputs, allow_unused=True))
        gradients = [None if leaf is None else next(found) for leaf in leaves]
        d_keys, self.d_mean, d_cov, d_project, d_project_bias, *rest = gradients
        k = self.k
        keys = self.q[:, k:]
        keys.zero_().scatter_(2, self.chosen, d_keys)
        d_project[k:] += torch.bmm(keys, self.x.transpose(1, 2)).sum(0)
        d_project_bias[k:] += d_keys.sum((0, 2))
        self.d_theta = None
        if d_cov is not None:  # cov = theta theta^T / P, of theta without its mean
            self.d_theta = d_cov + d_cov.transpose(1, 2)
            d_project[:k] += (self.d_theta @ self.cross).sum(0)
        fields = len(Block._fields) - 2
        return [d_project, d_project_bias, *rest[:fields]], rest[fields:]

    def add_map_gradient(self, d_map: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The whole gradient of the map, given the residual's; in place, after ``backward``."""
        n, k, project = len(d_map), self.k, self.block.project
        d_map.mul_(factor[:, None, None])
        if self.d_mean is not None:
            d_map += (self.d_mean / self.x.shape[2])[:, :, None]
        back = project[k:].t().expand(n, -1, -1)
        if self.d_theta is None:
            return d_map.baddbmm_(back, self.q[:, k:])
        d_theta = project[:k].t() @ self.d_theta / self.x.shape[2]
        return d_map.baddbmm_(torch.cat([d_theta, back], dim=2), self.q)
