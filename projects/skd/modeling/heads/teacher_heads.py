"""All kinds of heads that a student learns from: checked, watched, compared."""

import copy
import logging
from typing import Any, ContextManager, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from ...config.naming import YAML, called, written_as
from ...distillers import words
from ...distillers.heads import HeadsSettings
from ...runtime.words import shown
from ..classes import class_names, num_classes
from ..features import LevelPair, Maps, pair_levels
from ..losses import check_terms
from .base import HEAD_REGISTRY, Calls, Classes, HeadPair, ModuleCall, Unfit, watch_calls

logger = logging.getLogger(__name__)


class TeacherHeads:
    """
    Terms between the heads of both detectors, on top of those of the features.

    The teacher's heads run on its own feature maps, and where the student's look: at its anchors,
    proposals and boxes. Nothing has parameters, so nothing is saved or reduced.

    What is made by the constructor are settings, for any number of students; :meth:`fitted` makes
    what one of them learns by.
    """

    Settings = HeadsSettings

    def __init__(self, **settings: Any):
        """
        Args:
            settings: fields of :class:`HeadsSettings`.

        Raises:
            ValueError: a value out of range, or an unknown kind of head.
            TypeError: a setting that there is not.
        """
        self.settings = self.Settings.make(settings, type(self))
        known = sorted(name for name, _ in HEAD_REGISTRY)
        unknown = [name for name in self.settings.names if name not in known]
        if unknown or not self.settings.names:
            raise ValueError(
                f"{_key('names')} is {list(self.settings.names)}; it must be kinds of heads, of "
                f"{', '.join(known)}."
            )
        self.kinds: List[HeadPair] = []
        self._shapes: Dict[str, ShapeSpec] = {}

    @classmethod
    def config_key(cls) -> str:
        """The node of its settings below ``MODEL.DISTILLER``."""
        return "HEADS"

    def fitted(
        self,
        student: nn.Module,
        teacher: nn.Module,
        shapes: Optional[Dict[str, ShapeSpec]] = None,
    ) -> "TeacherHeads":
        """
        Args:
            student: a detector; teacher: a :class:`FrozenTeacher`.
            shapes: of the maps that the student's heads take; None for those of before, where the
                teacher is another one now.

        Returns:
            A copy, for these two.

        Raises:
            ValueError: heads that cannot be compared, or classes whose names are not known.
        """
        check_full_size(getattr(teacher, "half_size", False))
        if getattr(teacher, "whole", None) is None:
            raise ValueError(
                "The teacher was built without its heads: model.teacher.heads=True for a "
                "LazyConfig, build_teacher(..., heads=True) in Python."
            )
        if teacher.features != "backbone":
            raise ValueError(
                f"{_key('names')} needs the maps that the teacher's heads take, and "
                f"{called('MODEL.TEACHER.FEATURES')} is '{teacher.features}': leave it 'backbone'."
            )
        found = copy.copy(self)
        found._shapes = self._shapes if shapes is None else shapes
        pairs = pair_levels(found._shapes, teacher.output_shape())
        found.kinds = [self._kind(name, student, teacher, pairs) for name in self.settings.names]
        return found

    def _kind(
        self, name: str, student: nn.Module, teacher: nn.Module, pairs: Dict[str, LevelPair]
    ) -> HeadPair:
        kind = HEAD_REGISTRY.get(name)
        classes = self._classes(student, teacher) if kind.needs_classes else Classes([], [])
        pair = kind(self.settings, pairs, classes)
        try:
            pair.check(student, teacher.whole)
        except Unfit as error:
            raise ValueError(
                f"{_key('names')} has '{name}', and these heads cannot be compared: {error}."
            ) from error
        return pair

    def _classes(self, student: nn.Module, teacher: nn.Module) -> Classes:
        names = self.settings.student_classes
        theirs = self.settings.teacher_classes or teacher.classes
        _check_names(names, student, "student")
        _check_names(theirs, teacher.whole, "teacher")
        return shared_classes(names, theirs)

    def watch(self, student: nn.Module) -> ContextManager[Calls]:
        """Record the calls of the modules that are needed, by their names, within the block."""
        names = [n for k in self.kinds for n in (*k.watched.values(), *k.watched_often.values())]
        return watch_calls(student, names)

    def terms(
        self, student: nn.Module, teacher: nn.Module, calls: Calls, maps: Maps
    ) -> Dict[str, Dict[str, torch.Tensor]]:
        """
        Args:
            student: a detector; teacher: a :class:`FrozenTeacher`.
            calls: from :meth:`watch`, after the student's forward.
            maps: the teacher's.

        Raises:
            ValueError: a module that did not run once.
        """
        found: Dict[str, Dict[str, torch.Tensor]] = {}
        device = next(iter(maps.values())).device
        with torch.autocast(device.type, enabled=False):
            maps = {name: x.float() for name, x in maps.items() if isinstance(x, torch.Tensor)}
            for kind in self.kinds:
                own: Dict[str, Any] = {k: _once(calls, name) for k, name in kind.watched.items()}
                own.update({k: calls[name] for k, name in kind.watched_often.items()})
                terms = kind.terms(student, teacher.whole, own, maps)
                check_terms(terms, type(kind).__name__)
                twice = [term for term in terms if term in found]
                if twice:
                    raise ValueError(
                        f"{type(kind).__name__} returned {', '.join(twice)}, a term that another "
                        "kind of head has, too."
                    )
                found.update(terms)
        return found


def check_full_size(half_size: bool) -> None:
    """
    Args:
        half_size: whether a teacher sees its images at half their size; heads are learned from it.

    Raises:
        ValueError: it does. The student's anchors and boxes would be others in its pixels.
    """
    if half_size:
        raise ValueError(
            f"{called('MODEL.TEACHER.HALF_SIZE')} is True, and the teacher's heads are learned "
            f"from ({_key('names')}), which look at boxes in pixels of whole images: leave one out."
        )


def _check_names(names: Sequence[str], detector: nn.Module, whose: str) -> None:
    """A name too many or too few, and those behind it would be taken for other classes."""
    key, count = _key(f"{whose}_classes"), num_classes(detector)
    if not names:
        raise ValueError(
            f"The names of the {whose}'s classes are not known: give {key}, in their order."
        )
    if count is not None and len(names) != count:
        raise ValueError(
            f"The {whose} tells {count} classes apart, and its classes' names are {len(names)}, "
            f"{shown(names)}: give {key}, a name for each, in their order."
        )


def _key(name: str) -> str:
    """What the user calls a setting."""
    return words.called(TeacherHeads, name)


def _once(calls: Calls, name: str) -> ModuleCall:
    if len(calls[name]) != 1:
        raise ValueError(
            f"The student's '{name}' ran {len(calls[name])} times in one step; to learn from the "
            "teacher's head it must run once."
        )
    return calls[name][0]


def shared_classes(student: Sequence[str], teacher: Sequence[str]) -> Classes:
    """
    Classes of the same name, in the student's order. The log says which are left out.

    Raises:
        ValueError: there is none, or a name that stands twice.
    """
    for names in (student, teacher):
        if len(set(names)) < len(names):
            raise ValueError(f"A class's name stands twice, so it says nothing: {list(names)}.")
    shared = [name for name in student if name in set(teacher)]
    if not shared:
        raise ValueError(
            f"Student and teacher have no class of the same name: {shown(student)}; "
            f"{shown(teacher)}."
        )
    for names, others, whose in ((student, teacher, "teacher"), (teacher, student, "student")):
        missing = [name for name in names if name not in set(others)]
        if missing:
            logger.warning(
                f"Heads: left out, because the {whose} has no such class: {shown(missing)}"
            )
    places: Tuple[List[int], ...] = tuple(
        [list(names).index(name) for name in shared] for names in (student, teacher)
    )
    return Classes(*places)


def build_heads(cfg: CfgNode) -> Optional[TeacherHeads]:
    """What ``MODEL.DISTILLER.HEADS`` describes; None where it names no head."""
    settings = HeadsSettings.arguments(cfg.MODEL.DISTILLER.HEADS)
    with written_as(YAML):
        HeadsSettings.make(settings, TeacherHeads)  # before anything is asked of them
    if not settings["names"]:
        return None
    settings["student_classes"] = settings["student_classes"] or class_names(cfg.DATASETS.TRAIN)
    return TeacherHeads(**settings)
