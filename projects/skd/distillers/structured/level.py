"""
The three losses of SKD, an equation a function: the layers of one level, the losses of several.

A_S and A_T are the maps of student and teacher, (N, C_s, H, W) and (N, C_t, H, W).
"""

from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from ..attention import attention_mask, channel_attention, reduce_norms, spatial_attention
from ..base import Losses, at_least_fp32
from .fused_attention import Attention, difference_norms, masked_feature_norms
from .fused_blocks import kind_of
from .fused_non_local import non_local_norms
from .fused_residual import LossWithGradients, MapList, Norm
from .non_local import NonLocalBlock
from .settings import StructuredSettings

Levels = Sequence["StructuredLevel"]


class StructuredLevel(nn.Module):
    """The three terms at one level. A term of weight 0 has no layers and is left out."""

    def __init__(self, student: ShapeSpec, teacher: ShapeSpec, settings: StructuredSettings):
        """
        Args:
            student, teacher: channels and stride of the maps; strides are equal.
            settings: none of them None. Without ``adapter``, attention transfer needs equal
                channels.
        """
        super().__init__()
        self.stride = student.stride
        self.settings = settings
        if settings.weight_am:
            self.feature_adapter = nn.Conv2d(student.channels, teacher.channels, 1)
        if settings.weight_at:
            self._make_attention_adapters(student, teacher)
        if settings.weight_nl:
            self.student_non_local = self._make_block(student)
            self.teacher_non_local = self._make_block(teacher)
            self.non_local_adapter = nn.Conv2d(student.channels, teacher.channels, 1)

    def _make_attention_adapters(self, student: ShapeSpec, teacher: ShapeSpec) -> None:
        if self.settings.adapter:
            self.channel_adapter = nn.Linear(student.channels, teacher.channels)
            self.spatial_adapter = nn.Conv2d(1, 1, 3, padding=1)
        else:
            self.channel_adapter = self.spatial_adapter = nn.Identity()

    def _make_block(self, shape: ShapeSpec) -> NonLocalBlock:
        width, key_stride = dict(self.settings.non_local_width), dict(self.settings.key_stride)
        return NonLocalBlock(
            shape.channels,
            width.get(self.stride, max(shape.channels // 2, 1)),
            key_stride.get(self.stride, 2),
            affinity=self.settings.affinity,
            norm=self.settings.non_local_norm,
        )

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> Losses:
        """
        Args:
            student: A_S.
            teacher: A_T.

        Returns:
            Weighted scalars.
        """
        return losses([self], [student], [teacher])[0]

    @torch.no_grad()
    def mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """M_s M_c of the feature loss, (N, 1 or C_t, H, W)."""
        student, teacher = at_least_fp32(student), at_least_fp32(teacher)
        mask = self.spatial_mask(student, teacher)
        if not self.settings.channel_mask:
            return mask
        # channels can be compared only one by one: of a student with another number of them, the
        # attention of its adapted map is taken
        same = student.shape[1] == teacher.shape[1]
        student = student if same else self.feature_adapter(student)
        return mask * self.channel_mask(student, teacher)

    def spatial_mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """M_s, (N, 1, H, W)."""
        mask = self._mask(*(spatial_attention(x).flatten(1) for x in (student, teacher)))
        return mask.unflatten(1, (1, *student.shape[-2:]))

    def channel_mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """M_c, (N, C_t, 1, 1). The student's map with C_t channels."""
        mask = self._mask(channel_attention(student), channel_attention(teacher))
        return mask[:, :, None, None]

    def non_local_kind(self, student: torch.Tensor, teacher: torch.Tensor) -> Optional[Tuple]:
        """
        Levels for which it is equal have their non-local losses computed at once. None where the
        fused form cannot.
        """
        blocks = (self.student_non_local, self.teacher_non_local)
        if not all(block.is_fused() for block in blocks):
            return None
        return tuple(kind_of(*pair) for pair in zip(blocks, (student, teacher)))

    def _mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        return attention_mask(student, teacher, settings.temperature, settings.mask_fusion)


def losses(levels: Levels, students: MapList, teachers: MapList) -> List[Losses]:
    """
    The weighted terms of several levels. What is small of all is computed at once: a GPU, and its
    host, need as long for one.

    Args:
        levels: with equal settings.
        students, teachers: A_S and A_T of each. They may be in half precision.
    """
    settings = levels[0].settings
    terms: Dict[str, List[LossWithGradients]] = {}
    # Autograd goes through these from the last to the first. The first one's gradient is made of
    # expanded vectors: as the last to come, it is added to a map that is there already.
    if settings.weight_at:
        terms["loss_distill_structured_at"] = attention_transfer(levels, students, teachers)
    if settings.weight_nl:
        terms["loss_distill_structured_nl"] = non_local(levels, students, teachers)
    if settings.weight_am:
        terms["loss_distill_structured_am"] = masked_feature(levels, students, teachers)
    found = [{name: terms[name][i].in_graph() for name in terms} for i in range(len(levels))]
    return [dict(sorted(of_level.items())) for of_level in found]


def masked_feature(levels: Levels, students: MapList, teachers: MapList) -> List[LossWithGradients]:
    """alpha L_AM, L_AM = sqrt(sum (A_T - conv(A_S))^2 M_s M_c)."""
    roots = [x.mask(*maps).sqrt() for x, *maps in zip(levels, students, teachers)]
    convs, strides = [x.feature_adapter for x in levels], [x.stride for x in levels]
    norm = _norm(levels, levels[0].settings.weight_am, strides)
    return masked_feature_norms(students, teachers, convs, roots, norm)


def attention_transfer(
    levels: Levels, students: MapList, teachers: MapList
) -> List[LossWithGradients]:
    """beta L_AT, L_AT = |g_c(A_T) - lin(g_c(A_S))| + |g_s(A_T) - conv(g_s(A_S))|."""
    pool = levels[0].settings.pool
    space, channels = zip(*(Attention.apply(x, x, pool) for x in students))
    space = [x.spatial_adapter(s.unsqueeze(1)).squeeze(1) for x, s in zip(levels, space)]
    channels = [x.channel_adapter(c) for x, c in zip(levels, channels)]
    with torch.no_grad():
        of_teacher = [Attention.apply(x, x, pool) for x in teachers]
    differences = [(s - t_s, c - t_c) for s, c, (t_s, t_c) in zip(space, channels, of_teacher)]
    strides = [stride for x in levels for stride in (x.stride, 0)]
    return difference_norms(differences, _norm(levels, levels[0].settings.weight_at, strides))


def non_local(levels: Levels, students: MapList, teachers: MapList) -> List[LossWithGradients]:
    """
    gamma L_NL, L_NL = |conv(r_S) - r_T|. The teacher's block learns too, and its output is not
    detached: the teacher's features within it hold it in place.
    """
    groups: Dict[Any, List[int]] = {}
    for i, x in enumerate(levels):
        groups.setdefault(x.non_local_kind(students[i], teachers[i]), []).append(i)
    found = {}
    for kind, members in groups.items():
        inputs = [[x[i] for i in members] for x in (levels, students, teachers)]
        of_kind = plain_non_local(*inputs) if kind is None else fused_non_local(*inputs)
        found.update(zip(members, of_kind))
    return [found[i] for i in range(len(levels))]


def fused_non_local(
    levels: Levels, students: MapList, teachers: MapList
) -> List[LossWithGradients]:
    """:func:`non_local` of levels of one :meth:`~StructuredLevel.non_local_kind`, fused."""
    norm = _norm(levels, levels[0].settings.weight_nl, [x.stride for x in levels])
    blocks = zip(*((x.student_non_local, x.teacher_non_local) for x in levels))
    convs = [x.non_local_adapter for x in levels]
    return non_local_norms(students, teachers, convs, tuple(blocks), norm)


def plain_non_local(
    levels: Levels, students: MapList, teachers: MapList
) -> List[LossWithGradients]:
    """:func:`non_local` of levels whose blocks the fused form cannot do, block by block."""
    differences = [
        [x.non_local_adapter(x.student_non_local(s)) - x.teacher_non_local(t)]
        for x, *maps in zip(levels, students, teachers)
        for s, t in [map(at_least_fp32, maps)]
    ]
    norm = _norm(levels, levels[0].settings.weight_nl, [x.stride for x in levels])
    return difference_norms(differences, norm)


def _norm(levels: Levels, weight: float, strides: Sequence[int]) -> Norm:
    reduction = levels[0].settings.reduction
    return partial(reduce_norms, reduction=reduction, strides=strides, weight=weight)
