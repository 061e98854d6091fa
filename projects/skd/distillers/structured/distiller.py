"""SKD as a distiller: which preset, and a :class:`StructuredLevel` for each pair of maps."""

from dataclasses import asdict, replace

from detectron2.layers import ShapeSpec
from torch import nn

from ..base import (
    LevelwiseDistiller,
    Maps,
    ObjectBoxes,
    Shapes,
    Terms,
    no_autocast,
)
from ..registry import DISTILLER_REGISTRY
from ..words import called
from .level import StructuredLevel, losses
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

    @property
    def preset(self) -> str:
        """The preset's name; "auto" until :meth:`bind`."""
        return self.settings.preset

    @property
    def has_published_weights(self) -> bool:
        return self.preset != "auto"

    def bind(self, shapes: Shapes) -> None:
        preset = self.preset
        if preset == "auto":
            preset = "two_stage" if self.is_of_two_stages(shapes) else "one_stage"
        defaults = {**PRESETS[preset], "reduction": "mean" if self.balanced else "sum"}
        self.settings = replace(self.settings.filled(defaults), preset=preset)
        super().bind(shapes)

    def make_layers(self, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
        settings, same = self.settings, student.channels == teacher.channels
        if settings.weight_at and not settings.adapter and not same:
            raise ValueError(
                f"At stride {student.stride} the student has {student.channels} channels and the "
                f"teacher {teacher.channels}: attention transfer then needs "
                f"{called(type(self), 'adapter')} to be True, or "
                f"{called(type(self), 'weight_at')} to be 0."
            )
        return StructuredLevel(student, teacher, self.settings)

    def forward(self, student: Maps, teacher: Maps, boxes: ObjectBoxes = None) -> Terms:
        names = list(self.levels)
        terms: Terms = {}
        with no_autocast(student):
            of_levels = losses(
                list(self.levels.values()),
                [student[name] for name in names],
                [teacher[name] for name in names],
            )
        for name, of_level in zip(names, of_levels):
            for term, loss in of_level.items():
                terms.setdefault(term, {})[name] = loss
        return terms

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in asdict(self.settings).items())
