"""
Structured knowledge distillation: L. Zhang, K. Ma, "Structured Knowledge Distillation for Accurate
and Efficient Object Detection", IEEE TPAMI 2023, doi 10.1109/TPAMI.2023.3300470.

docs/method.md leads from each equation to its line here.
"""

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from ..attention import (
    MASK_FUSIONS,
    POOLS,
    REDUCTIONS,
    attention_mask,
    channel_attention,
    difference_norm,
    spatial_attention,
)
from ..base import DISTILLER_REGISTRY, Boxes, LevelwiseDistiller, Shapes, Terms, is_two_stage
from ..checks import check_choice, check_flag, check_number
from .fused import Attention, MaskedFeatureNorm
from .fused_non_local import NonLocalNorm
from .non_local import AFFINITIES, NORMS, NonLocalBlock

_NON_LOCAL_TWO_STAGE = {"non_local_width": {4: 64, 8: 64}, "key_stride": {4: 8, 8: 4}}
_NON_LOCAL_ONE_STAGE = {"non_local_width": {8: 64, 16: 64}, "key_stride": {8: 8, 16: 4}}
_CODE = {"mask_fusion": "mean_of_softmaxes", "pool": "mean", "adapter": True}
_PAPER = {"mask_fusion": "softmax_of_sum", "pool": "abs", "adapter": False, "channel_mask": True}

PRESETS: Dict[str, Dict[str, Any]] = {
    # the authors' released training code
    "two_stage": {
        "temperature": 0.5, "weight_am": 7e-5, "weight_at": 4e-3, "weight_nl": 7e-5,
        "channel_mask": False, **_CODE, **_NON_LOCAL_TWO_STAGE,
    },
    "one_stage": {
        "temperature": 0.1, "weight_am": 4.2e-4, "weight_at": 2.4e-2, "weight_nl": 4.2e-4,
        "channel_mask": True, **_CODE, **_NON_LOCAL_ONE_STAGE,
    },
    # the paper's text
    "two_stage_paper": {
        "temperature": 0.1, "weight_am": 7e-5, "weight_at": 4e-3, "weight_nl": 7e-5,
        **_PAPER, **_NON_LOCAL_TWO_STAGE,
    },
    "one_stage_paper": {
        "temperature": 0.5, "weight_am": 4e-4, "weight_at": 2e-2, "weight_nl": 4e-4,
        **_PAPER, **_NON_LOCAL_ONE_STAGE,
    },
}  # fmt: skip

ByStride = Union[Mapping[int, int], Sequence[Tuple[int, int]]]


@DISTILLER_REGISTRY.register()
class StructuredDistiller(LevelwiseDistiller):
    """
    Attention-guided and non-local distillation.

    The loss is the sum over levels of three weighted terms: ``loss_distill_structured_am``, the
    attention-masked feature loss, ``loss_distill_structured_at``, attention transfer, and
    ``loss_distill_structured_nl``, the non-local loss.
    """

    @configurable
    def __init__(
        self,
        *,
        preset: str = "auto",
        temperature: Optional[float] = None,
        weight_am: Optional[float] = None,
        weight_at: Optional[float] = None,
        weight_nl: Optional[float] = None,
        mask_fusion: Optional[str] = None,
        channel_mask: Optional[bool] = None,
        pool: Optional[str] = None,
        adapter: Optional[bool] = None,
        reduction: str = "sum",
        affinity: str = "dot_product",
        non_local_norm: str = "BN",
        non_local_width: Optional[ByStride] = None,
        key_stride: Optional[ByStride] = None,
    ):
        """
        The arguments are the keys of ``MODEL.DISTILLER.STRUCTURED``; those left at None are as
        the preset has them.

        Raises:
            ValueError: a value that is not among the choices or out of range; names the key.
        """
        super().__init__()
        check_choice("STRUCTURED.PRESET", preset, ("auto", *PRESETS))
        check_choice("STRUCTURED.REDUCTION", reduction, REDUCTIONS)
        check_choice("STRUCTURED.NON_LOCAL.AFFINITY", affinity, AFFINITIES)
        check_choice("STRUCTURED.NON_LOCAL.NORM", non_local_norm, NORMS)
        self.preset = preset
        self.reduction = reduction
        self.affinity = affinity
        self.non_local_norm = non_local_norm
        self.settings = {
            "temperature": temperature,
            "weight_am": weight_am,
            "weight_at": weight_at,
            "weight_nl": weight_nl,
            "mask_fusion": mask_fusion,
            "channel_mask": channel_mask,
            "pool": pool,
            "adapter": adapter,
            "non_local_width": _by_stride("NON_LOCAL.WIDTHS", non_local_width),
            "key_stride": _by_stride("NON_LOCAL.KEY_STRIDES", key_stride),
        }
        _check_settings({k: v for k, v in self.settings.items() if v is not None})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        s = cfg.MODEL.DISTILLER.STRUCTURED
        return {
            "preset": s.PRESET,
            "temperature": s.TEMPERATURE,
            "weight_am": s.WEIGHT_AM,
            "weight_at": s.WEIGHT_AT,
            "weight_nl": s.WEIGHT_NL,
            "mask_fusion": s.MASK_FUSION,
            "channel_mask": s.CHANNEL_MASK,
            "pool": s.POOL,
            "adapter": s.ADAPTER,
            "reduction": s.REDUCTION,
            "affinity": s.NON_LOCAL.AFFINITY,
            "non_local_norm": s.NON_LOCAL.NORM,
            "non_local_width": s.NON_LOCAL.WIDTHS,
            "key_stride": s.NON_LOCAL.KEY_STRIDES,
        }

    def bind(self, shapes: Shapes) -> None:
        if self.preset == "auto":
            self.preset = "two_stage" if is_two_stage(shapes) else "one_stage"
        for key, value in PRESETS[self.preset].items():
            if self.settings[key] is None:
                self.settings[key] = value
        super().bind(shapes)

    def make_layers(self, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
        return StructuredLevel(
            student,
            teacher,
            reduction=self.reduction,
            affinity=self.affinity,
            non_local_norm=self.non_local_norm,
            **self.settings,
        )

    def level_loss(
        self, level: str, student: torch.Tensor, teacher: torch.Tensor, boxes: Boxes
    ) -> Terms:
        return self.levels[level](student, teacher)

    def extra_repr(self) -> str:
        settings = {"preset": self.preset, "reduction": self.reduction, **self.settings}
        return ", ".join(f"{k}={v}" for k, v in settings.items())


class StructuredLevel(nn.Module):
    """The three terms at one level. A term of weight 0 has no layers and is left out."""

    def __init__(
        self,
        student: ShapeSpec,
        teacher: ShapeSpec,
        *,
        temperature: float,
        weight_am: float,
        weight_at: float,
        weight_nl: float,
        mask_fusion: str,
        channel_mask: bool,
        pool: str,
        adapter: bool,
        reduction: str,
        affinity: str,
        non_local_norm: str,
        non_local_width: Mapping[int, int],
        key_stride: Mapping[int, int],
    ):
        super().__init__()
        self.stride = stride = student.stride
        self.temperature = temperature
        self.weight_am, self.weight_at, self.weight_nl = weight_am, weight_at, weight_nl
        self.mask_fusion = mask_fusion
        self.channel_mask = channel_mask
        self.pool = pool
        self.reduction = reduction
        if weight_am:
            self.feature_adapter = nn.Conv2d(student.channels, teacher.channels, 1)
        if weight_at and adapter:
            self.channel_adapter = nn.Linear(student.channels, teacher.channels)
            self.spatial_adapter = nn.Conv2d(1, 1, 3, padding=1)
        elif weight_at:
            if student.channels != teacher.channels:
                raise ValueError(
                    f"At stride {stride} the student has {student.channels} channels and the "
                    f"teacher {teacher.channels}: attention transfer then needs its adapter. Set "
                    "MODEL.DISTILLER.STRUCTURED.ADAPTER True, or WEIGHT_AT 0."
                )
            self.channel_adapter = self.spatial_adapter = nn.Identity()
        if weight_nl:

            def block(channels):
                return NonLocalBlock(
                    channels,
                    non_local_width.get(stride, max(channels // 2, 1)),
                    key_stride.get(stride, 2),
                    affinity=affinity,
                    norm=non_local_norm,
                )

            self.student_non_local = block(student.channels)
            self.teacher_non_local = block(teacher.channels)
            self.non_local_adapter = nn.Conv2d(student.channels, teacher.channels, 1)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> Terms:
        """
        Args:
            student: A_S, (N, C_s, H, W).
            teacher: A_T, (N, C_t, H, W).

        Returns:
            Weighted scalars.
        """
        losses = {}
        if self.weight_at:  # first, so that it is last in backward and adds to the others' map
            losses["loss_distill_structured_at"] = self.attention(student, teacher)
        if self.weight_nl:
            losses["loss_distill_structured_nl"] = self.non_local(student, teacher)
        if self.weight_am:
            losses["loss_distill_structured_am"] = self.masked_feature(student, teacher)
        return dict(sorted(losses.items()))

    def masked_feature(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """alpha L_AM, L_AM = sqrt(sum (A_T - conv(A_S))^2 M_s M_c)."""
        n, _, h, w = student.shape
        conv = self.feature_adapter
        with torch.no_grad():
            mask = attention_mask(
                spatial_attention(student).flatten(1),
                spatial_attention(teacher).flatten(1),
                self.temperature,
                self.mask_fusion,
            ).view(n, 1, h, w)
            if self.channel_mask:
                # channels can be compared only one by one: of a student with another number of
                # them, the attention of its adapted map is taken
                same = student.shape[1] == teacher.shape[1]
                channels = attention_mask(
                    channel_attention(student if same else conv(student)),
                    channel_attention(teacher),
                    self.temperature,
                    self.mask_fusion,
                )
                mask = mask * channels[:, :, None, None]
        return MaskedFeatureNorm.apply(
            student, teacher, conv.weight, conv.bias, mask.sqrt(), self.reduction, self.stride,
            self.weight_am,
        )  # fmt: skip

    def attention(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """beta L_AT, L_AT = |g_c(A_T) - lin(g_c(A_S))| + |g_s(A_T) - conv(g_s(A_S))|."""
        space, channels = Attention.apply(student, student, self.pool)
        channels = self.channel_adapter(channels)
        space = self.spatial_adapter(space.unsqueeze(1)).squeeze(1)
        return self.weight_at * (
            difference_norm(channel_attention(teacher, self.pool) - channels, self.reduction)
            + difference_norm(
                spatial_attention(teacher, self.pool) - space, self.reduction, self.stride
            )
        )

    def non_local(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """
        gamma L_NL, L_NL = |conv(r_S) - r_T|. The teacher's block learns too, and its output is not
        detached: the teacher's features within it hold it in place.
        """
        conv, blocks = self.non_local_adapter, (self.student_non_local, self.teacher_non_local)
        fused = [block.fused() for block in blocks]
        if None in fused:
            difference = conv(blocks[0](student)) - blocks[1](teacher)
            return self.weight_nl * difference_norm(difference, self.reduction, self.stride)
        settings = [(block.norm, block.key_stride) for block in blocks]
        return NonLocalNorm.apply(
            student, teacher, conv.weight, conv.bias, settings, self.reduction, self.stride,
            self.weight_nl, *fused[0], *fused[1],
        )  # fmt: skip


def _check_settings(settings: Dict[str, Any]) -> None:
    for name, value in settings.items():
        key = f"STRUCTURED.{name.upper()}"
        if name == "mask_fusion":
            check_choice(key, value, MASK_FUSIONS)
        elif name == "pool":
            check_choice(key, value, POOLS)
        elif name == "temperature" or name.startswith("weight_"):
            check_number(key, value, positive=name == "temperature")
        elif name in ("channel_mask", "adapter"):
            check_flag(key, value)


def _by_stride(key: str, pairs: Optional[ByStride]) -> Optional[Dict[int, int]]:
    if pairs is None:
        return None
    try:
        values = dict(pairs)
    except (TypeError, ValueError):
        values = {None: None}
    if not all(isinstance(v, int) and v > 0 for pair in values.items() for v in pair):
        raise ValueError(
            f"MODEL.DISTILLER.STRUCTURED.{key} is {pairs!r}; it must be a list of [stride, value], "
            "whole numbers above 0."
        )
    return values
