"""Whether an optimizer can take up what a checkpoint says of one."""

import os
from typing import Any, Dict, Optional

import torch

from .trust import CheckpointError
from .weights_file import NON_FINITE_VARIABLE, is_finite
from .words import called

# what torch's releases have added, and fill in where a state has none
_ADDED = {
    "amsgrad", "capturable", "decoupled_weight_decay", "differentiable", "foreach", "fused",
    "maximize",
}  # fmt: skip


def class_name(optimizer: torch.optim.Optimizer) -> str:
    """An optimizer's class, without the subclass by which Detectron2 clips gradients."""
    names = [kind.__name__ for kind in type(optimizer).__mro__]
    return next(name for name in names if "GradientClip" not in name)


def check_optimizer(
    state: Dict[str, Any], optimizer: torch.optim.Optimizer, name: Optional[str] = None
) -> None:
    """
    Check a state before ``optimizer.load_state_dict(state)``, which takes whatever has as many
    parameters; the first step then stops at a missing setting.

    Args:
        state: of an optimizer.
        name: :func:`class_name` of that one. Detectron2's checkpoints do not have it; then the
            settings have to be the same.

    Raises:
        CheckpointError: the state is of an optimizer of another class or with other parameters, or
            has NaN or infinity, which the first step would bring into the weights.
    """
    _check_class(name, state, optimizer)
    _check_parameters(state, optimizer)
    _check_finite(state)


def _check_class(
    before: Optional[str], state: Dict[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    now = class_name(optimizer)
    has = {key for group in state["param_groups"] for key in group}
    lacks = sorted(set(optimizer.defaults) - _ADDED - has)
    if before is None and lacks and has:
        before = f"another one, without {', '.join(lacks)}"
    if before not in (None, now):
        raise CheckpointError(
            f"The checkpoint's optimizer is {before}, and the one to train with is {now}. "
            f"{_advice()}"
        )


def _check_parameters(state: Dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    old = [i for group in state["param_groups"] for i in group["params"]]
    new = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    fits = sizes == [len(group["params"]) for group in state["param_groups"]]
    if fits:
        for i, parameter in zip(old, new):
            tensors = [v for v in state["state"].get(i, {}).values() if torch.is_tensor(v)]
            fits &= all(v.ndim == 0 or v.shape == parameter.shape for v in tensors)
    if not fits:
        raise CheckpointError(
            f"The checkpoint's optimizer has {len(old)} parameters in "
            f"{len(state['param_groups'])} groups, and the one to train with {len(new)} in "
            f"{len(sizes)}, or of other shapes. {_advice()}"
        )


def _check_finite(state: Dict[str, Any]) -> None:
    values = [item for of in state["state"].values() for item in of.items()]
    bad = [name for name, value in values if torch.is_tensor(value) and not is_finite(value)]
    if bad and not os.environ.get(NON_FINITE_VARIABLE):
        raise CheckpointError(
            f"The checkpoint's optimizer has NaN or infinite numbers in {len(bad)} tensors "
            f"({', '.join(sorted(set(bad)))}), and one step would bring them into the weights. "
            f"Take an earlier checkpoint, or set {NON_FINITE_VARIABLE}=1 to load them all the same."
        )


def _advice() -> str:
    return (
        "Resume with the configuration the run was started with, or start a new run from its "
        f"weights: {called('weights')}, another {called('output_dir')}, no --resume."
    )
