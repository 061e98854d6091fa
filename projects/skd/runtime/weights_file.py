"""What a file of weights has to hold: tensors by name, of finite numbers."""

import logging
import os
from typing import Any, Dict, Iterator, Mapping
from urllib.parse import urlparse

import numpy as np
import torch
from torch import nn

from .trust import CheckpointError

logger = logging.getLogger(__name__)

# Set it to load numbers that are not finite, as stock Detectron2 does.
NON_FINITE_VARIABLE = "SKD_LOAD_NON_FINITE"


def without_query(weights: str) -> str:
    """The file or URL itself, where Detectron2's ``?matching_heuristics=True`` follows it."""
    return urlparse(weights)._replace(query="").geturl()


def with_model(path: str, data: Any) -> Dict[str, Any]:
    """
    Args:
        path: for the errors.
        data: what the file holds.

    Returns:
        The same with the tensors under "model", where Detectron2 has them. Files of other projects
        that have them under "state_dict" (mmdetection, Lightning) are taken too, with a warning.

    Raises:
        CheckpointError: there are none; says what is there.
    """
    if isinstance(data, Mapping) and "model" not in data and _is_state(data.get("state_dict")):
        logger.warning(f"'{path}' has no 'model'; its 'state_dict' is taken.")
        data = {**{k: v for k, v in data.items() if k != "state_dict"}, "model": data["state_dict"]}
    place = "under 'model'"
    if isinstance(data, Mapping) and "model" not in data:
        data, place = {"model": data}, "in it, and no 'model'"
    state = data["model"] if isinstance(data, Mapping) else data
    if _what_is_wrong(state):
        raise not_weights(path, state, place)
    return data


def not_weights(path: str, state: Any, place: str = "as weights") -> CheckpointError:
    """The error of a file that holds something else in the place of tensors by name."""
    return CheckpointError(
        f"'{path}' has {_what_is_wrong(state) or 'nothing'} {place}; there must be tensors by "
        "name, as model.state_dict() gives them: torch.save({'model': model.state_dict()}, FILE)."
    )


def _is_state(state: Any) -> bool:
    return not _what_is_wrong(state)


def _what_is_wrong(state: Any) -> str:
    if not isinstance(state, Mapping):
        return "None" if state is None else f"a {type(state).__name__}"
    for name, value in state.items():
        if not isinstance(name, str):
            return f"the name {name!r:.50} (of type {type(name).__name__})"
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            return f"{name!r:.100} (of type {type(value).__name__})"
    return ""


def check_finite(path: str, state: Mapping[str, Any], model: nn.Module) -> None:
    """
    Args:
        state: tensors by name; those that the model does not have are left alone.
        model: they are for. Of its buffers only running statistics are asked: others may mean
            something by an infinity, like masks of attention.

    Raises:
        CheckpointError: NaN or infinity among them, and the environment does not allow it.
    """
    bad = where_not_finite(state, model)
    if bad:
        raise CheckpointError(
            f"'{path}' has NaN or infinite numbers in {bad}; they must be "
            "finite: a model with them finds nothing, and teaches nothing. Take an earlier "
            f"checkpoint, or set {NON_FINITE_VARIABLE}=1 to load them all the same."
        )


def where_not_finite(state: Mapping[str, Any], model: nn.Module) -> str:
    """
    The names of tensors that :func:`check_finite` refuses, for a message; "" without any, or where
    the environment allows them.
    """
    if os.environ.get(NON_FINITE_VARIABLE):
        return ""
    bad = list(_not_finite(state, model))
    return ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")


def _not_finite(state: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    asked = {name for name, _ in model.named_parameters()}
    asked |= {k for k, _ in model.named_buffers() if k.endswith(("running_mean", "running_var"))}
    for name, value in state.items():
        known = name.removeprefix("module.") in asked
        if known and isinstance(value, torch.Tensor) and not is_finite(value):
            yield name


def is_finite(value: torch.Tensor) -> bool:
    """Whether all numbers of a tensor are."""
    value = value.float() if value.itemsize == 1 and value.is_floating_point() else value  # fp8
    return bool(torch.isfinite(value).all())
