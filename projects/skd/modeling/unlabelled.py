"""
Images without labels in a training step: told apart from the others, and run through the student
only as far as its features, so that none of them reaches the detector's own losses.
"""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from ..distillers import CombinedDistiller, Distiller
from ..runtime.unlabelled import is_unlabelled

TERM = "loss_distill_unlabelled"  # all terms on images without labels together


class ForwardArguments(NamedTuple):
    """What a model's forward is called with."""

    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]

    @property
    def values(self) -> Tuple[Any, ...]:
        return (*self.args, *self.kwargs.values())


def is_batch(x: Any) -> bool:
    """Whether it is Detectron2's batched inputs: dicts with an image, at least one."""
    return (
        isinstance(x, (list, tuple))
        and bool(x)
        and all(isinstance(y, dict) and "image" in y for y in x)
    )


def split_call(call: ForwardArguments) -> Tuple[ForwardArguments, Optional[ForwardArguments]]:
    """
    Returns:
        The call with the labelled images of its batch, and the same with the others; None in place
        of this one where all have labels.

    Raises:
        ValueError: none has labels.
    """
    batch: List[Any] = next(filter(is_batch, call.values), [])
    others = [x for x in batch if is_unlabelled(x)]
    if not others:
        return call, None
    labelled = [x for x in batch if not is_unlabelled(x)]
    if not labelled:
        raise ValueError(
            f"None of the batch's {len(batch)} images has labels: in each step the detector needs "
            "some in every process, and in every micro-batch of gradient accumulation."
        )
    return _with(call, batch, labelled), _with(call, batch, others)


def _with(call: ForwardArguments, old: Any, new: Any) -> ForwardArguments:
    args = tuple(new if x is old else x for x in call.args)
    return ForwardArguments(args, {k: new if x is old else x for k, x in call.kwargs.items()})


def check_needs_no_boxes(distiller: Distiller, key: str) -> None:
    """
    Args:
        key: what brought the images without labels, for the error.

    Raises:
        ValueError: a method that needs the objects' boxes; names it.
    """
    methods = [m for m in distiller.modules() if isinstance(m, Distiller) and m.needs_boxes]
    names = [type(m).__name__ for m in methods if not isinstance(m, CombinedDistiller)]
    if names:
        raise ValueError(
            f"{', '.join(names)} cannot learn from images without labels ({key}), because it needs "
            "the objects' boxes: choose a method that does without, like StructuredDistiller or "
            "PKD."
        )


@contextmanager
def names_what_is_missing(images: Sequence[Dict[str, Any]], model: nn.Module) -> Iterator[None]:
    """
    Raises:
        ValueError: within, a key was asked for that these images do not have.
    """
    try:
        yield
    except KeyError as error:
        if len(error.args) != 1 or all(error.args[0] in x for x in images):
            raise
        raise ValueError(
            f"The student, a {type(model)._skd_student.__name__}, needs {error.args[0]!r} of each "
            "image before its features are made, and images without labels do not have it: only a "
            "student that looks at labels behind its features can learn from them."
        ) from error


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """What is drawn within is drawn again after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def without_statistics(model: nn.Module) -> Iterator[None]:
    """
    Modules in training that keep running statistics, as batch norms, leave them as they are: those
    are of the images that the heads learn from. (They cannot be put back afterwards: the backward
    pass asks for them unchanged.)
    """
    modules = [m for m in model.modules() if m.training and hasattr(m, "track_running_stats")]
    before = [(m, getattr(m, "momentum", None), m.track_running_stats) for m in modules]
    for m in modules:  # Detectron2's synchronized norm looks at the former, torch's at the latter
        m.momentum, m.track_running_stats = 0.0, False
    try:
        yield
    finally:
        for m, momentum, track in before:
            m.momentum, m.track_running_stats = momentum, track
