"""
The three losses of SKD at one level, an equation a function.

A_S and A_T are the maps of student and teacher, (N, C_s, H, W) and (N, C_t, H, W).
"""

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from ..attention import attention_mask, channel_attention, difference_norm, spatial_attention
from ..base import Terms
from .fused_attention import Attention, MaskedFeatureNorm
from .fused_non_local import NonLocalNorm
from .non_local import NonLocalBlock
from .settings import StructuredSettings


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

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> Terms:
        """
        Args:
            student: A_S.
            teacher: A_T.

        Returns:
            Weighted scalars.
        """
        losses = {}
        # Autograd goes through these from the last to the first. The first one's gradient is made
        # of expanded vectors: as the last to come, it is added to a map that is there already.
        if self.settings.weight_at:
            losses["loss_distill_structured_at"] = self.attention_transfer(student, teacher)
        if self.settings.weight_nl:
            losses["loss_distill_structured_nl"] = self.non_local(student, teacher)
        if self.settings.weight_am:
            losses["loss_distill_structured_am"] = self.masked_feature(student, teacher)
        return dict(sorted(losses.items()))

    def masked_feature(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """alpha L_AM, L_AM = sqrt(sum (A_T - conv(A_S))^2 M_s M_c)."""
        conv = self.feature_adapter
        with torch.no_grad():
            mask = self.spatial_mask(student, teacher)
            if self.settings.channel_mask:
                # channels can be compared only one by one: of a student with another number of
                # them, the attention of its adapted map is taken
                same = student.shape[1] == teacher.shape[1]
                mask = mask * self.channel_mask(student if same else conv(student), teacher)
        return MaskedFeatureNorm.apply(
            student, teacher, conv.weight, conv.bias, mask.sqrt(), self.settings.reduction,
            self.stride, self.settings.weight_am,
        )  # fmt: skip

    def spatial_mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """M_s, (N, 1, H, W)."""
        mask = self._mask(*(spatial_attention(x).flatten(1) for x in (student, teacher)))
        return mask.unflatten(1, (1, *student.shape[-2:]))

    def channel_mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """M_c, (N, C_t, 1, 1). The student's map with C_t channels."""
        mask = self._mask(channel_attention(student), channel_attention(teacher))
        return mask[:, :, None, None]

    def _mask(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        return attention_mask(student, teacher, settings.temperature, settings.mask_fusion)

    def attention_transfer(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """beta L_AT, L_AT = |g_c(A_T) - lin(g_c(A_S))| + |g_s(A_T) - conv(g_s(A_S))|."""
        pool, reduction = self.settings.pool, self.settings.reduction
        space, channels = Attention.apply(student, student, pool)
        channels = self.channel_adapter(channels)
        space = self.spatial_adapter(space.unsqueeze(1)).squeeze(1)
        return self.settings.weight_at * (
            difference_norm(channel_attention(teacher, pool) - channels, reduction)
            + difference_norm(spatial_attention(teacher, pool) - space, reduction, self.stride)
        )

    def non_local(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """
        gamma L_NL, L_NL = |conv(r_S) - r_T|. The teacher's block learns too, and its output is not
        detached: the teacher's features within it hold it in place.
        """
        conv, blocks = self.non_local_adapter, (self.student_non_local, self.teacher_non_local)
        reduction, weight = self.settings.reduction, self.settings.weight_nl
        fused = [block.fused() for block in blocks]
        if None in fused:
            difference = conv(blocks[0](student)) - blocks[1](teacher)
            return weight * difference_norm(difference, reduction, self.stride)
        settings = [(block.norm, block.key_stride) for block in blocks]
        return NonLocalNorm.apply(
            student, teacher, conv.weight, conv.bias, settings, reduction, self.stride, weight,
            *fused[0], *fused[1],
        )  # fmt: skip
