"""The registry of methods, and what a method has to be."""

from typing import Dict, List, Optional, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

DISTILLER_REGISTRY = Registry("DISTILLER")
DISTILLER_REGISTRY.__doc__ = """
Distillation methods: subclasses of :class:`Distiller`, named by ``MODEL.DISTILLER.NAME``. Each is
called with the config.
"""

Maps = Dict[str, torch.Tensor]
Boxes = Optional[List[torch.Tensor]]
Shapes = Dict[str, Tuple[ShapeSpec, ShapeSpec]]
Terms = Dict[str, torch.Tensor]


class Distiller(nn.Module):
    """
    A distillation loss over pairs of feature maps.

    A method implements :meth:`bind`, which makes its parameters once the shapes are known, and
    :meth:`forward`. All its parameters must get a gradient in every step, because data-parallel
    training does not look for unused ones.

    Attributes:
        needs_boxes: whether :meth:`forward` is given the ground-truth boxes.
    """

    needs_boxes = False

    def bind(self, shapes: Shapes) -> None:
        """
        Make the layers that depend on shapes. Called once, before training.

        Args:
            shapes: channels and stride of the student's and the teacher's map, by level name,
                finest level first. Strides are equal within a pair.
        """
        raise NotImplementedError

    def forward(self, student: Maps, teacher: Maps, boxes: Boxes = None) -> Dict[str, Terms]:
        """
        Args:
            student, teacher: feature maps (N, C, H, W) by level name, with the same N, H and W
                at each level. The teacher's need no gradient.
            boxes: for each of the N images its objects' boxes (G, 4), XYXY in pixels of the
                image; None unless :attr:`needs_boxes`.

        Returns:
            For each term of the loss, named ``loss_distill_*``, its weighted value (a scalar) at
            each level. Their sum is added to the student's own loss.
        """
        raise NotImplementedError


class LevelwiseDistiller(Distiller):
    """
    A method that treats each level on its own and computes in at least fp32, whatever autocast is
    on: sums of squares overflow half precision. It implements :meth:`make_layers` and
    :meth:`level_loss`; its settings are the keys of ``MODEL.DISTILLER.<NAME>``.
    """

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleDict()
        self.strides: Dict[str, int] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode):
        node = cfg.MODEL.DISTILLER[cls.__name__.upper()]
        return {key.lower(): value for key, value in node.items()}

    def make_layers(self, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
        """The learnt layers of one level."""
        raise NotImplementedError

    def level_loss(
        self, level: str, student: torch.Tensor, teacher: torch.Tensor, boxes: Boxes
    ) -> Terms:
        """
        The weighted terms at one level.

        Args:
            level: its name; its layers are ``self.levels[level]``, its stride
                ``self.strides[level]``.
            student, teacher: its maps (N, C_s, H, W) and (N, C_t, H, W).
            boxes: see :meth:`forward`.
        """
        raise NotImplementedError

    def bind(self, shapes: Shapes) -> None:
        self.strides = {name: student.stride for name, (student, _) in shapes.items()}
        for name, (student, teacher) in shapes.items():
            self.levels[name] = self.make_layers(student, teacher)

    def forward(self, student: Maps, teacher: Maps, boxes: Boxes = None) -> Dict[str, Terms]:
        terms: Dict[str, Terms] = {}
        for name in self.levels:
            maps = student[name], teacher[name]
            with torch.autocast(maps[0].device.type, enabled=False):
                maps = [
                    x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in maps
                ]
                losses = self.level_loss(name, *maps, boxes)
            for term, loss in losses.items():
                terms.setdefault(term, {})[name] = loss
        return terms


def adapter(student: ShapeSpec, teacher: ShapeSpec, always: bool = False) -> nn.Module:
    """
    A 1x1 convolution from the student's channels to the teacher's; nothing where they are as many,
    unless ``always``.
    """
    if student.channels == teacher.channels and not always:
        return nn.Identity()
    return nn.Conv2d(student.channels, teacher.channels, 1)


def is_two_stage(shapes: Shapes) -> bool:
    """Whether levels begin at stride 4 (P2-P6), as two-stage detectors' do, or later (P3-P7)."""
    return min(student.stride for student, _ in shapes.values()) <= 4


class CombinedDistiller(Distiller):
    """Several methods at once; the terms of each times its weight."""

    def __init__(self, methods: Dict[str, Tuple[Distiller, float]]):
        """
        Args:
            methods: distiller and weight by name.
        """
        super().__init__()
        self.methods = nn.ModuleDict({name: method for name, (method, _) in methods.items()})
        self.weights = {name: weight for name, (_, weight) in methods.items()}
        self.needs_boxes = any(method.needs_boxes for method in self.methods.values())

    def bind(self, shapes: Shapes) -> None:
        for method in self.methods.values():
            method.bind(shapes)

    def forward(self, student: Maps, teacher: Maps, boxes: Boxes = None) -> Dict[str, Terms]:
        terms: Dict[str, Terms] = {}
        for name, method in self.methods.items():
            own = method(student, teacher, boxes if method.needs_boxes else None)
            for term, levels in own.items():
                if term in terms:
                    raise ValueError(f"{name} and another method both have a term '{term}'.")
                terms[term] = {k: self.weights[name] * loss for k, loss in levels.items()}
        return terms


def build_distiller(cfg: CfgNode) -> Distiller:
    """
    Build the method ``MODEL.DISTILLER.NAME``, or those of ``MODEL.DISTILLER.COMBINE``.

    Raises:
        ValueError: an unknown name, or a list that is not one of names and weights.
    """
    combine = cfg.MODEL.DISTILLER.COMBINE
    if not combine:
        return _build(cfg.MODEL.DISTILLER.NAME, "NAME", cfg)
    pairs = [tuple(pair) for pair in combine if isinstance(pair, (list, tuple)) and len(pair) == 2]
    good = all(isinstance(n, str) and isinstance(w, (int, float)) and w > 0 for n, w in pairs)
    names = [name for name, *_ in pairs]
    if len(pairs) < len(combine) or not good or len(set(names)) < len(names):
        raise ValueError(
            f"MODEL.DISTILLER.COMBINE is {combine!r}; it must be a list of [method, weight] with "
            "different methods and weights above 0, like [['StructuredDistiller', 1.0], "
            "['PKD', 0.5]]."
        )
    return CombinedDistiller(
        {name: (_build(name, "COMBINE", cfg), float(weight)) for name, weight in pairs}
    )


def _build(name: str, key: str, cfg: CfgNode) -> Distiller:
    if name not in DISTILLER_REGISTRY:
        raise ValueError(
            f"Unknown method '{name}' (MODEL.DISTILLER.{key}). "
            f"Known: {', '.join(sorted(k for k, _ in DISTILLER_REGISTRY))}."
        )
    return DISTILLER_REGISTRY.get(name)(cfg)
