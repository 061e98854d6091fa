"""The student's FPN and heads as copies of the teacher's, where they are alike."""

import logging
from typing import Dict

import torch
from detectron2.modeling import Backbone
from tabulate import tabulate
from torch import nn

from ..config.naming import called

logger = logging.getLogger(__name__)

State = Dict[str, torch.Tensor]


def components(detector: nn.Module) -> Dict[str, State]:
    """
    What may be inherited: the FPN, and each head.

    Returns:
        Tensors by their name in the detector, by component: ``backbone`` is the backbone without
        the backbones inside of it (so a ResNet alone is none); all others are the detector's own
        children, with those of ``roi_heads`` one by one.
    """
    inner = tuple(
        name + "."
        for name, module in detector.named_modules()
        if name.startswith("backbone.") and isinstance(module, Backbone)
    )
    found: Dict[str, State] = {}
    for name, value in detector.state_dict().items():
        child, *rest = name.split(".")
        if not rest:
            continue  # the detector's own, like pixel_mean
        if child == "backbone" and (not inner or name.startswith(inner)):
            continue
        component = f"{child}.{rest[0]}" if child == "roi_heads" else child
        found.setdefault(component, {})[name] = value
    return found


def inherit(student: nn.Module, teacher: Dict[str, State]) -> None:
    """
    Copy every component of the teacher that the student has with the same names and shapes, as a
    whole, in place; the log says which, and why not the others.

    Args:
        student: a detector.
        teacher: :func:`components` of another.

    Raises:
        ValueError: none agrees.
    """
    mine = components(student)
    rows = []
    for name, state in mine.items():
        if name not in teacher:
            rows.append((name, len(state), "no: the teacher has none"))
            continue
        difference = _difference(state, teacher[name])
        if not difference:
            with torch.no_grad():
                for key, value in state.items():
                    value.copy_(teacher[name][key])
        rows.append((name, len(state), f"no: {difference}" if difference else "yes"))
    table = tabulate(rows, headers=["part of the student", "tensors", "inherited"])
    if not any(row[2] == "yes" for row in rows):
        raise ValueError(
            f"{called('MODEL.STUDENT.INHERIT')} is True, but nothing of the teacher's FPN and "
            f"heads fits the student:\n{table}"
        )
    logger.info("The student starts with parts of the teacher:\n%s", table)


def _difference(student: State, teacher: State) -> str:
    for key in (*student, *teacher):
        if key not in teacher:
            return f"{key} is in the student only"
        if key not in student:
            return f"{key} is in the teacher only"
        if student[key].shape != teacher[key].shape:
            return (
                f"{key} is {tuple(student[key].shape)}, the teacher's {tuple(teacher[key].shape)}"
            )
    return ""
