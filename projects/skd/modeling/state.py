"""What a distilling model knows besides its parts, and how others ask it."""

import math
from dataclasses import dataclass, field
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import nn

from ..distillers.shares import GradientShares
from ..distillers.similarity import MapSimilarity
from .features import LevelPair, Maps
from .heads import TeacherHeads


class AlignedMaps(NamedTuple):
    """
    What a distiller compares in one step; see :func:`watch_maps`.

    image: the batch's first, (C, H, W), as the model gets it; image_format: its color order;
    student, teacher: maps (N, C, H, W) by the student's level names, of equal sizes (channels may
    differ); strides: of these levels.
    """

    image: torch.Tensor
    image_format: str
    student: Maps
    teacher: Maps
    strides: Dict[str, int]


@dataclass
class DistillState:
    """
    A distilling model's ``_skd``.

    Attributes:
        input_format: color order of the model's images.
        features: name of the student's module that is tapped.
        every: see ``MODEL.DISTILLER.EVERY``.
        pairs: of maps, by the student's name.
        measured_pairs: of the maps at which gradients are measured: all of ``pairs``, and with
            ``heads`` those that are the default, whatever levels of the features are chosen.
        form: of the config that the model was made from, whose words errors use.
        unlabelled_weight: see ``MODEL.DISTILLER.UNLABELLED_WEIGHT``.
        heads: what is learned from the teacher's.
        alike: how alike the maps of each pair are.
        shares: what the terms do, where no balance weighs them.
        measured_every: iterations that distil from one where these are measured to the next; a
            balance has its own.
        watcher: see :func:`watch_maps`.
        running: whether the student's forward is under way.
        unlabelled: whether there were images without labels.
    """

    input_format: str
    features: str
    every: int
    pairs: Dict[str, LevelPair]
    measured_pairs: Dict[str, LevelPair]
    form: str
    unlabelled_weight: float = 1.0
    heads: Optional[TeacherHeads] = None
    alike: MapSimilarity = field(default_factory=MapSimilarity)
    shares: GradientShares = field(default_factory=GradientShares)
    measured_every: int = 20
    watcher: Optional[Callable[[AlignedMaps], None]] = None
    running: bool = False
    unlabelled: bool = False


def pairs_of(model: nn.Module) -> Dict[str, LevelPair]:
    """The pairs of maps that a model distils, by the student's name, finest first."""
    return model._skd.pairs


def tapped_module(model: nn.Module) -> nn.Module:
    """The student's module whose feature maps are distilled."""
    return model.get_submodule(model._skd.features)


def distilled_iterations(model: nn.Module) -> Tuple[int, float]:
    """``every, end``: in those below ``end`` that ``every`` divides the model distils."""
    balance = model.distiller.balance
    return model._skd.every, math.inf if balance is None else balance.end()


def expect_unlabelled(model: nn.Module) -> None:
    """Show their loss, as 0, in iterations without them too, also where a resume begins there."""
    model._skd.unlabelled = True


def watch_maps(model: nn.Module, watcher: Callable[[AlignedMaps], None]) -> None:
    """
    Call ``watcher`` once, with the maps that the model's next step that distils compares. It must
    not change them, nor keep them: they hold the step's graph.
    """
    model._skd.watcher = watcher
