"""SKD as a distiller: which preset, and a :class:`StructuredLevel` for each pair of maps."""

from dataclasses import asdict, replace
from typing import Any, Dict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from ..base import Boxes, LevelwiseDistiller, Shapes, Terms, is_two_stage
from ..build import DISTILLER_REGISTRY, is_balanced
from .level import StructuredLevel
from .settings import PRESETS, StructuredSettings


@DISTILLER_REGISTRY.register()
class StructuredDistiller(LevelwiseDistiller):
    """
    SKD: attention-guided and non-local distillation.

    The loss is the sum over levels of three weighted terms: ``loss_distill_structured_am``, the
    attention-masked feature loss, ``loss_distill_structured_at``, attention transfer, and
    ``loss_distill_structured_nl``, the non-local loss.
    """

    Settings = StructuredSettings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        settings = super().from_config(cfg)
        if is_balanced(cfg) and settings["reduction"] is None:
            settings["reduction"] = "mean"
        return settings

    @property
    def preset(self) -> str:
        """The preset's name; "auto" until :meth:`bind`."""
        return self.settings.preset

    def bind(self, shapes: Shapes) -> None:
        preset = self.preset
        if preset == "auto":
            preset = "two_stage" if is_two_stage(shapes) else "one_stage"
        self.settings = replace(
            self.settings.filled({**PRESETS[preset], "reduction": "sum"}), preset=preset
        )
        super().bind(shapes)

    def make_layers(self, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
        return StructuredLevel(student, teacher, self.settings)

    def level_loss(
        self, level: str, student: torch.Tensor, teacher: torch.Tensor, boxes: Boxes
    ) -> Terms:
        return self.levels[level](student, teacher)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in asdict(self.settings).items())
