"""What a method has to be: the base classes, and what several methods share."""

import functools
from contextlib import AbstractContextManager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Type

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from .balance import GradientBalance, Maps, Terms
from .idle import warn_of_idle
from .settings import Settings

ObjectBoxes = Optional[List[torch.Tensor]]  # (G, 4) of each image
Shapes = Dict[str, Tuple[ShapeSpec, ShapeSpec]]  # the student's and the teacher's, by level
Losses = Dict[str, torch.Tensor]  # of one level, by term

DISTILLER_MARK = "skd.distiller"  # in the metadata of a state dict


class Distiller(nn.Module):
    """
    A distillation loss over pairs of feature maps.

    A method implements :meth:`bind`, which makes its parameters once the shapes are known, and
    :meth:`forward`. All its parameters must get a gradient in every step, because data-parallel
    training does not look for unused ones. What can be set of it are the fields of its
    ``Settings``.

    Attributes:
        needs_boxes: whether :meth:`forward` is given the ground-truth boxes.
        compares_maps: whether the maps themselves are to come alike (CKA), or only something that
            is taken from them, which unlike maps may have in common.
        proportions: of the terms' gradients, by their names; 1 for those not named.
        balance: what weighs the terms, if anything does; set by the meta-architecture. It is a
            part of the distiller so that its state is saved here.
        settings: an instance of ``Settings``.
        balanced: whether something weighs the terms; set before :meth:`bind`.
        student_stride: of the finest of all the student's maps, distilled or not; set before
            :meth:`bind`. None: of those distilled.
    """

    needs_boxes = False
    compares_maps = True
    balanced = False
    student_stride: Optional[int] = None
    _bound = False
    Settings: Type[Settings] = Settings

    @configurable
    def __init__(self, **settings: Any):
        """
        The arguments are the fields of ``Settings``, all of which have defaults.

        Raises:
            ValueError: a value out of range; names the setting.
            TypeError: a setting that the method does not have; names the nearest that it has.
        """
        super().__init__()
        self.proportions: Dict[str, float] = {}
        self.balance: Optional[GradientBalance] = None
        # scalars of the last step for who pops them; None until somebody does
        self.metrics: Optional[Dict[str, torch.Tensor]] = None
        self.settings = self.Settings.make(settings, type(self))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        # a method that was registered after the config was made has the defaults
        node = cfg.MODEL.DISTILLER.get(cls.config_key(), None)
        return {} if node is None else cls.Settings.arguments(node)

    @classmethod
    def config_key(cls) -> str:
        """The node of its settings below ``MODEL.DISTILLER``."""
        return cls.__name__.upper().removesuffix("DISTILLER")

    def bind(self, shapes: Shapes) -> None:
        """
        Make the layers that depend on shapes. Called once, before training, by
        :meth:`bind_once`.

        Args:
            shapes: channels and stride of the student's and the teacher's map, by level name,
                finest level first. Strides are equal within a pair.
        """
        raise NotImplementedError

    def bind_once(
        self,
        shapes: Shapes,
        balance: Optional[GradientBalance] = None,
        student_stride: Optional[int] = None,
    ) -> None:
        """
        :meth:`bind` for a model.

        Args:
            shapes: see :meth:`bind`.
            balance: what is to weigh the terms; dropped if :meth:`wants_balance` says no.
            student_stride: of the finest of the student's maps.

        Raises:
            ValueError: it was done before: the layers are those of another student; or the
                ``balance`` weighs another student's terms.
        """
        if self._bound:
            raise ValueError(
                f"The {type(self).__name__} is another model's distiller: it has layers that fit, "
                "and learn with, that one's student. Make one for each student."
            )
        if balance is not None and balance.taken:
            raise ValueError(
                f"The {type(balance).__name__} is another model's balance: it has the lengths of "
                "that one's gradients, and counts its iterations. Make one for each student."
            )
        if balance is not None:
            self.balanced = self.wants_balance(balance.settings.enabled)
            warn_of_idle(self.methods_in_use(), balance, self.balanced)
        self.student_stride = student_stride
        self.bind(shapes)
        self.balance = balance if self.balanced else None
        self._bound = True
        if self.balance is not None:
            self.balance.taken = True

    def is_of_two_stages(self, shapes: Shapes) -> bool:
        """
        Whether the student's levels begin at stride 4 (P2-P6), as two-stage detectors' do, or later
        (P3-P7); also where the finest is not distilled.
        """
        finest = self.student_stride or min(student.stride for student, _ in shapes.values())
        return finest <= 4

    def methods_in_use(self) -> List["Distiller"]:
        """The methods whose settings count: this one, or those that it is made of."""
        return [self]

    @property
    def has_published_weights(self) -> bool:
        """
        Whether the settings name weights that were published, which a balance would change. To be
        asked before :meth:`bind`.
        """
        return False

    def wants_balance(self, enabled: Optional[bool] = None) -> bool:
        """
        The one rule of when terms are weighed by their gradients, in YAML, LazyConfig and Python.

        Args:
            enabled: of :class:`BalanceSettings`. None: yes, unless the weights are published ones.
        """
        return not self.has_published_weights if enabled is None else enabled

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> "Distiller":
        """``.half()`` and its like leave the layers: losses are computed in at least fp32."""
        return super()._apply(lambda t: _never_halved(t, fn(t)), *args, **kwargs)

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, *args: Any) -> None:
        super()._save_to_state_dict(destination, prefix, *args)
        if hasattr(destination, "_metadata"):  # of what a checkpoint has: this is a distiller
            destination._metadata[prefix[:-1]][DISTILLER_MARK] = True

    def forward(self, student: Maps, teacher: Maps, boxes: ObjectBoxes = None) -> Terms:
        """
        Args:
            student, teacher: feature maps (N, C, H, W) by level name, with the same N, H and W
                at each level. The teacher's need no gradient.
            boxes: for each of the N images its objects' boxes (G, 4), XYXY in pixels of the
                image; None unless :attr:`needs_boxes`.

        Returns:
            For each term of the loss, named ``loss_distill_<method>`` or
            ``loss_distill_<method>_<term>``, its weighted value (a scalar) at each level. Their
            sum is added to the student's own loss.
        """
        raise NotImplementedError


class LevelwiseDistiller(Distiller):
    """
    A method that computes level by level, in at least fp32 whatever autocast is on: sums of
    squares overflow half precision. It implements :meth:`make_layers` if it learns layers, and
    :meth:`level_loss` if each level stands on its own.
    """

    @configurable
    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.levels = nn.ModuleDict()
        self.strides: Dict[str, int] = {}

    def make_layers(self, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
        """The learned layers of one level; none by default."""
        return nn.Identity()

    def level_loss(
        self, level: str, student: torch.Tensor, teacher: torch.Tensor, boxes: ObjectBoxes
    ) -> Losses:
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

    def forward(self, student: Maps, teacher: Maps, boxes: ObjectBoxes = None) -> Terms:
        terms: Terms = {}
        with no_autocast(student):
            for name, *maps in self.pairs(student, teacher):
                for term, loss in self.level_loss(name, *maps, boxes).items():
                    terms.setdefault(term, {})[name] = loss
        return terms

    def pairs(
        self, student: Maps, teacher: Maps
    ) -> Iterator[Tuple[str, torch.Tensor, torch.Tensor]]:
        """Level by level its name and both maps in at least fp32; only these are in memory."""
        for name in self.levels:
            yield name, at_least_fp32(student[name]), at_least_fp32(teacher[name])


class StagewiseDistiller(LevelwiseDistiller):
    """
    A method whose authors have other settings for two-stage than for one-stage detectors. Those of
    its ``Settings`` that are None are taken from them.

    Attributes:
        two_stage, one_stage: the authors' settings, by name; one of them is ``num_levels``, how
            many of the levels are distilled, the finest first.
    """

    two_stage: Mapping[str, Any]
    one_stage: Mapping[str, Any]

    def bind(self, shapes: Shapes) -> None:
        authors = self.two_stage if self.is_of_two_stages(shapes) else self.one_stage
        self.settings = self.settings.filled(authors)
        super().bind(dict(list(shapes.items())[: self.settings.num_levels]))


def no_autocast(maps: Maps) -> AbstractContextManager:
    """Turn autocast off within the block: operations compute in the type of their inputs."""
    device = next(iter(maps.values())).device
    return torch.autocast(device.type, enabled=False)


def _never_halved(t: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    if not t.is_floating_point() or changed.element_size() >= min(4, t.element_size()):
        return changed
    return torch.empty_like(changed, dtype=t.dtype).copy_(t)


@functools.lru_cache(maxsize=None)
def constant(values: Tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers as a tensor, made once: to copy numbers to a GPU waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """A tensor of any shape; fp16 and bf16 as fp32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def adapter(student: ShapeSpec, teacher: ShapeSpec, always: bool = False) -> nn.Module:
    """
    A 1x1 convolution from the student's channels to the teacher's; nothing where they are as many,
    unless ``always``.
    """
    if student.channels == teacher.channels and not always:
        return nn.Identity()
    return nn.Conv2d(student.channels, teacher.channels, 1)


def wide_adapter(student: ShapeSpec, teacher: ShapeSpec, std: float) -> nn.Module:
    """
    A 3x3 convolution from the student's channels to the teacher's.

    Args:
        std: standard deviation of its first weights. A small one, as FGFI's and DeFeat's authors
            have it, keeps the student's first gradient small: it passes through these weights.
    """
    conv = nn.Conv2d(student.channels, teacher.channels, 3, padding=1)
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    return conv
