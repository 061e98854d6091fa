"""What an adapter for a kind of head has to be."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.utils.registry import Registry
from torch import nn

from ...distillers.base import constant
from ...distillers.heads import HeadsSettings
from ..features import LevelPair, Maps

HEAD_REGISTRY = Registry("HEAD")
HEAD_REGISTRY.__doc__ = """
Kinds of heads, named in ``MODEL.DISTILLER.HEADS.NAMES``: subclasses of :class:`HeadPair`.
"""


class Unfit(ValueError):
    """Two detectors' heads of a kind that cannot be compared; says why."""


class ModuleCall(NamedTuple):
    """What a module was given and what it returned, in one step."""

    inputs: Tuple[Any, ...]
    output: Any


Calls = Dict[str, List[ModuleCall]]  # by the module's name


@contextmanager
def watch_calls(detector: nn.Module, names: Sequence[str]) -> Iterator[Calls]:
    """Record the calls of these modules, within the block."""
    calls: Calls = {name: [] for name in names}
    handles = [
        detector.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: calls[name].append(ModuleCall(inputs, output))
        )
        for name in calls
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Classes(NamedTuple):
    """
    Classes that both know, in one order: their places among the student's and the teacher's. Empty
    for a kind of head that does not tell classes apart.
    """

    student: List[int]
    teacher: List[int]


class HeadPair:
    """
    A kind of head in both detectors. Keeps no module, so that models can be copied.

    A subclass names in ``watched`` the student's modules whose calls it needs, and implements
    :meth:`check` and :meth:`terms`.
    """

    watched: Dict[str, str] = {}  # from a short name to the student's module, that runs once
    watched_often: Dict[str, str] = {}  # the same of modules that run once a level
    needs_classes = False

    def __init__(self, settings: HeadsSettings, pairs: Dict[str, LevelPair], classes: Classes):
        """
        Args:
            settings: of all heads.
            pairs: of feature maps, by the student's name.
            classes: that both know; empty unless ``needs_classes``.
        """
        self.settings, self.pairs, self.classes = settings, pairs, classes

    def check(self, student: nn.Module, teacher: nn.Module) -> None:
        """
        Args:
            student, teacher: whole detectors.

        Raises:
            Unfit: their heads of this kind cannot be compared.
        """
        raise NotImplementedError

    def terms(
        self, student: nn.Module, teacher: nn.Module, calls: Dict[str, Any], maps: Maps
    ) -> Dict[str, Dict[str, torch.Tensor]]:
        """
        Args:
            student, teacher: as in :meth:`check`.
            calls: of the modules in ``watched``, by their short names, and of those in
                ``watched_often`` a list.
            maps: all of the teacher's feature maps (N, C, H, W), in fp32.

        Returns:
            Scalars by term and level, see :class:`skd.distillers.Distiller`.
        """
        raise NotImplementedError


def submodule(detector: nn.Module, name: str, whose: str, *attributes: str) -> nn.Module:
    """
    Raises:
        Unfit: the detector has no such module, or the module no such attributes.
    """
    try:
        module = detector.get_submodule(name)
    except AttributeError:
        module = None
    if module is None or not all(hasattr(module, a) for a in attributes):
        raise Unfit(
            f"the {whose}, a {type(detector).__name__}, has no '{name}'"
            + (f" with {', '.join(attributes)}" if module is not None else "")
        )
    return module


def equal(values: Sequence[Any], what: str) -> None:
    """
    Raises:
        Unfit: the student's and the teacher's differ.
    """
    student, teacher = values
    if student != teacher:
        raise Unfit(f"{what} is {student} in the student and {teacher} in the teacher")


def of_classes(x: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Some classes of (M, K, ...), in the order of ``classes``."""
    return x.index_select(1, constant(tuple(classes), torch.long, x.device))


Level = Tuple[str, int, int]  # its name, its place in the student's list and in the teacher's


def common_levels(
    student: Sequence[str], teacher: Sequence[str], pairs: Dict[str, LevelPair]
) -> List[Level]:
    """
    Args:
        student, teacher: names of the feature maps that their heads take.
        pairs: of maps.
    """
    return [
        (name, i, list(teacher).index(pairs[name].teacher_name))
        for i, name in enumerate(student)
        if name in pairs and pairs[name].teacher_name in teacher
    ]


def check_anchors(student: nn.Module, teacher: nn.Module, levels: Sequence[Level]) -> None:
    """
    Args:
        student, teacher: Detectron2's anchor generators.
        levels: to compare.

    Raises:
        Unfit: no levels, or other anchors.
    """
    if not levels:
        raise Unfit("no level of the two has feature maps of the same stride")
    equal([getattr(g, "offset", 0) for g in (student, teacher)], "the anchors' offset")
    s_anchors, t_anchors = list(student.cell_anchors), list(teacher.cell_anchors)
    for name, i, j in levels:
        a, b = s_anchors[i].cpu(), t_anchors[j].cpu()
        if a.shape[1] != 4:
            raise Unfit(f"the anchors at '{name}' are rotated")
        if a.shape != b.shape or not torch.allclose(a, b):
            raise Unfit(f"the anchors at '{name}' are others: {_sides(a)} and {_sides(b)} pixels")


def _sides(anchors: torch.Tensor) -> str:
    """Width x height of each."""
    return ", ".join(f"{x:.0f}x{y:.0f}" for x, y in (anchors[:, 2:] - anchors[:, :2]).tolist())
