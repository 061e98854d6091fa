"""
The two losses that compare whole feature maps, without keeping a map for backward.

Each is the norm of a residual that is linear in a few maps, ``sum_i W_i X_i + b - T``. The residual
of a few images is made, measured, turned into the gradients and thrown away, in the forward pass:
what is kept until backward is the student's gradient itself. Gradients of the small matrices
``W_i`` are then led further by autograd, because these are small.

Shape legend: N images, C channels, P = H W positions of a feature map, k channels of an embedding.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .attention import channel_attention, reduce_squares, spatial_attention

# of a residual in memory at one time; images are taken together up to that
CHUNK_ELEMENTS = 2**24


class Residual(NamedTuple):
    """
    squares: (N,), squared norm of each image's residual.
    matrices: d squares / d W_i, for each image, (N, C, C_i).
    bias: d squares / d b, for each image, (N, C).
    maps: d squares / d X_i, (N, C_i, P).
    All gradients are halved.
    """

    squares: torch.Tensor
    matrices: List[torch.Tensor]
    bias: torch.Tensor
    maps: List[torch.Tensor]


def residual(
    terms: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    bias: torch.Tensor,
    target: torch.Tensor,
    root: Optional[torch.Tensor] = None,
    gradients: bool = True,
) -> Residual:
    """
    Squared norm of ``root * (sum_i W_i X_i + b - T)`` and its gradients, of a few images at a time.

    Args:
        terms: (W_i, X_i): (C, C_i) or (N, C, C_i), and (N, C_i, P).
        bias: b, (C,).
        target: T, (N, C, P).
        root: square root of a mask, that broadcasts to (N, C, P).
        gradients: whether to make them.
    """
    n, c, p = target.shape
    terms = [(w.expand(n, *w.shape[-2:]), x) for w, x in terms]
    squares = target.new_empty(n)
    matrices = [x.new_empty(n, c, x.shape[1]) for _, x in terms] if gradients else []
    maps = [torch.empty_like(x) for _, x in terms] if gradients else []
    d_bias = target.new_empty(n, c)
    step = max(1, CHUNK_ELEMENTS // (c * p))
    for i in range(0, n, step):
        chunk = slice(i, i + step)
        e = torch.baddbmm(bias[:, None], *(t[chunk] for t in terms[0]))
        for w, x in terms[1:]:
            e.baddbmm_(w[chunk], x[chunk])
        e.sub_(target[chunk])
        if root is not None:
            e.mul_(root[chunk])
        # norms of rows first: one fp32 sum over millions of squares loses digits
        torch.sum(torch.linalg.vector_norm(e, dim=2).square_(), dim=1, out=squares[chunk])
        if not gradients:
            continue
        if root is not None:
            e.mul_(root[chunk])
        torch.sum(e, dim=2, out=d_bias[chunk])
        for (w, x), d_w, d_x in zip(terms, matrices, maps):
            torch.bmm(e, x[chunk].transpose(1, 2), out=d_w[chunk])
            torch.bmm(w[chunk].transpose(1, 2), e, out=d_x[chunk])
    return Residual(squares, matrices, d_bias, maps)


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
    def forward(ctx, student, teacher, weight, bias, root, reduction, stride):
        """
        Args:
            student, teacher: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teacher.
            weight, bias: of the 1x1 convolution, (C_t, C_s, 1, 1) and (C_t,).
            root: square root of the mask, (N, 1 or C_t, H, W).
            reduction, stride: see ``difference_norm``.
        """
        wanted = any(ctx.needs_input_grad)
        terms = [(weight.flatten(1), student.flatten(2))]
        result = residual(terms, bias, teacher.flatten(2), root.flatten(2), wanted)
        value, factor = reduce_squares(result.squares, reduction, stride, student.shape[-2:])
        if wanted:
            (d_weight,), (d_student,) = result.matrices, result.maps
            ctx.save_for_backward(
                d_student.mul_(factor[:, None, None]).view_as(student),
                (d_weight * factor[:, None, None]).sum(0).view_as(weight),
                (result.bias * factor[:, None]).sum(0),
            )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_student, d_weight, d_bias = ctx.saved_tensors
        return d_student * grad, None, d_weight * grad, d_bias * grad, None, None, None


class Block(NamedTuple):
    """Parameters and settings of a :class:`NonLocalBlock` with dot-product affinity."""

    project: torch.Tensor  # theta, phi and g as one, (3 k, C)
    project_bias: torch.Tensor  # (3 k,)
    out: torch.Tensor  # (C, k)
    out_bias: torch.Tensor  # (C,)
    gamma: Optional[torch.Tensor]  # of batch norm, (C,)
    beta: Optional[torch.Tensor]


def mixing(
    q: torch.Tensor, block: Block, norm: Optional[nn.BatchNorm2d], key_stride: int, size
) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    The block as a matrix: ``r = x + V theta + c``.

    Without softmax the affinity ``f = theta^T phi / n`` to n keys need not be formed:
    ``y = (g phi^T / n) theta``. The statistics of batch norm, too, follow from the mean and the
    covariance of theta, so neither y nor W y is made.

    Args:
        q: theta, phi and g of the map, (N, 3 k, P).
        block, norm, key_stride: of the block.
        size: H and W.

    Returns:
        V (N, C, k) and c (C,).
    """
    theta, phi, g = q.chunk(3, dim=1)
    window = (min(key_stride, size[0]), min(key_stride, size[1]))  # a map may be smaller
    phi, g = (F.max_pool2d(x.unflatten(2, tuple(size)), window).flatten(2) for x in (phi, g))
    v = block.out @ (g @ phi.transpose(1, 2) / phi.shape[2])
    if norm is None:
        return v, block.out_bias
    if not norm.training:
        scale = block.gamma * torch.rsqrt(norm.running_var + norm.eps)
        return v * scale[:, None], (block.out_bias - norm.running_mean) * scale + block.beta
    # variances of large maps overflow: take them of V divided by a power of two, which is exact
    largest = v.detach().abs().amax().clamp_min(1.0)
    unit = largest / torch.frexp(largest).mantissa
    w = v / unit
    mean_theta = theta.mean(2, keepdim=True)
    centred = theta - mean_theta
    covariance = centred @ centred.transpose(1, 2) / theta.shape[2]
    means = (w @ mean_theta).squeeze(2)  # of each image's W y
    var = ((w @ covariance) * w).sum(2).mean(0) + means.var(0, unbiased=False)
    mean = means.mean(0) * unit + block.out_bias
    scale = block.gamma * torch.rsqrt(var + norm.eps / unit**2) / unit
    _track(norm, mean.detach(), var.detach() * unit**2, theta.shape[0] * theta.shape[2])
    return v * scale[:, None], (block.out_bias - mean) * scale + block.beta


def _track(norm: nn.BatchNorm2d, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        unbiased = var * (count / max(count - 1, 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)


class NonLocalNorm(torch.autograd.Function):
    """Norm of ``conv(r_S) - r_T`` for the outputs r of two non-local blocks: L_NL."""

    @staticmethod
    def forward(ctx, student, teacher, weight, bias, settings, reduction, stride, *parameters):
        """
        Args:
            student, teacher: (N, C_s, H, W) and (N, C_t, H, W); no gradient to the teacher.
            weight, bias: of the 1x1 convolution, (C_t, C_s, 1, 1) and (C_t,).
            settings: (norm, key_stride) of the student's block, then of the teacher's.
            reduction, stride: see ``difference_norm``.
            parameters: the fields of the student's :class:`Block`, then of the teacher's.
        """
        wanted = any(ctx.needs_input_grad)
        size = student.shape[-2:]
        maps = student.flatten(2), teacher.flatten(2)
        half = len(Block._fields)
        blocks = Block(*parameters[:half]), Block(*parameters[half:])
        # the projections read each map once; from here to the residual all is small but q
        q = [
            torch.baddbmm(b.project_bias[:, None], b.project.expand(len(x), -1, -1), x)
            for b, x in zip(blocks, maps)
        ]
        with torch.set_grad_enabled(wanted):

            def leaf(t):
                return None if t is None else t.detach().requires_grad_(wanted)

            q = [leaf(x) for x in q]
            small = [Block(*map(leaf, b)) for b in blocks]
            a, a_bias = leaf(weight.flatten(1)), leaf(bias)
            (v_s, c_s), (v_t, c_t) = (
                mixing(x, b, *setting, size) for x, b, setting in zip(q, small, settings)
            )
            u, constant = a @ v_s, a_bias + a @ c_s
        theta = [x.detach()[:, : b.out.shape[1]] for x, b in zip(q, blocks)]
        result = residual(
            [(a.detach(), maps[0]), (u.detach(), theta[0]), (-v_t.detach(), theta[1])],
            (constant - c_t).detach(), maps[1], None, wanted,
        )  # fmt: skip
        value, factor = reduce_squares(result.squares, reduction, stride, size)
        if not wanted:
            return value
        d_a, d_u, d_v = (m.mul_(factor[:, None, None]) for m in result.matrices)
        d_student, *d_theta = (m.mul_(factor[:, None, None]) for m in result.maps)
        d_constant = (result.bias * factor[:, None]).sum(0)
        del result

        def gradients(i, outputs, d_outputs, *more):
            """Of q and of what is small, the teacher's and the student's one after the other."""
            inputs = [q[i], *(t for t in small[i][2:] if t is not None), *more]
            d_q, *d_small = torch.autograd.grad(outputs, inputs, d_outputs)
            d_q[:, : theta[i].shape[1]] += d_theta.pop()
            d_project = torch.bmm(d_q, maps[i].transpose(1, 2)).sum(0)
            d_small = iter(d_small)
            rest = [None if t is None else next(d_small) for t in small[i][2:]]
            return d_q, [d_project, d_q.sum((0, 2)), *rest], list(d_small)

        _, d_teacher, _ = gradients(1, [v_t, c_t], [-d_v, -d_constant])
        q.pop()
        d_q, d_block, (d_weight, d_bias) = gradients(
            0, [u, constant, a], [d_u, d_constant, d_a.sum(0)], a, a_bias
        )
        d_student.baddbmm_(blocks[0].project.t().expand(len(d_q), -1, -1), d_q)
        ctx.save_for_backward(
            d_student.view_as(student), d_weight.view_as(weight), d_bias, *d_block, *d_teacher
        )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_student, d_weight, d_bias, *rest = (
            None if d is None else d * grad for d in ctx.saved_tensors
        )
        return (d_student, None, d_weight, d_bias, None, None, None, *rest)
