"""
Numbers that a model keeps in plain attributes.

Detectron2's RetinaNet and FCOS divide their losses by a running mean of the number of positive
anchors, which is a Python float on the model (``DenseDetector._ema_update``) and so in no
``state_dict``. Detectors from elsewhere do the like under other names. So whatever number changed
while training is kept, by where it is.
"""

import numbers
from typing import Any, Dict, Iterator, List, Tuple

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from .unwrap import unwrapped


def _owners(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """A model's modules by path, also those held in plain attributes, each once."""
    seen, waiting = set(), [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children = {**vars(module), **module._modules}
        waiting += [
            (f"{path}.{name}".lstrip("."), child)
            for name, child in children.items()
            if isinstance(child, nn.Module)
        ]


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and not value.requires_grad
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def read_numbers(model: nn.Module) -> Dict[str, Any]:
    """
    Args:
        model: any model; a data-parallel wrapper's own numbers do not count.

    Returns:
        Numbers and scalar tensors in plain attributes, by dotted path.
    """
    model = unwrapped(model)
    return {
        f"{path}.{name}".lstrip("."): value.clone() if isinstance(value, torch.Tensor) else value
        for path, module in _owners(model)
        for name, value in vars(module).items()
        if _is_number(value)
    }


def write_numbers(model: nn.Module, values: Dict[str, Any]) -> None:
    """Put numbers of :func:`read_numbers` back; those whose module is gone are left out."""
    owners = dict(_owners(unwrapped(model)))
    for path, value in values.items():
        parent, _, name = path.rpartition(".")
        if parent in owners:
            setattr(owners[parent], name, value)


class PlainNumbers(HookBase):
    """
    Takes the plain numbers that training has changed into checkpoints, each process's own. What
    training leaves alone follows the config, as it does without this hook. Register it before
    what writes the checkpoints.
    """

    def __init__(self, model: nn.Module, checkpoint_period: int, eval_period: int = 0):
        """
        Args:
            model: as it was built.
            checkpoint_period: iterations; before each checkpoint the processes are asked.
            eval_period: the same before each evaluation, beside which a signal may let process 0
                write a checkpoint; 0 for none.
        """
        self.model = model
        self.periods = [period for period in (checkpoint_period, eval_period) if period]
        self._built = read_numbers(model)
        self._gathered: Tuple[int, List[Dict[str, Any]]] = (-1, [])

    def _changed(self) -> Dict[str, Any]:
        now = read_numbers(self.model)
        missing = object()
        return {k: v for k, v in now.items() if _differs(self._built.get(k, missing), v)}

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if any(done % period == 0 for period in self.periods) or done >= self.trainer.max_iter:
            self.before_checkpoint()

    def before_checkpoint(self) -> None:
        """Gather the numbers. All processes call this before one of them writes a checkpoint."""
        self._gathered = self.trainer.iter, comm.gather(self._changed())

    def state_dict(self) -> Dict[str, Any]:
        iteration, everyone = self._gathered
        if iteration != self.trainer.iter or not everyone:
            everyone = [self._changed()]
        return {"processes": everyone} if any(everyone) else {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        everyone = state["processes"]
        rank = comm.get_rank()
        write_numbers(self.model, everyone[rank if rank < len(everyone) else 0])


def _differs(before: Any, now: Any) -> bool:
    tensors = isinstance(before, torch.Tensor) or isinstance(now, torch.Tensor)
    if not tensors:
        return before is not now and before != now
    same = isinstance(before, torch.Tensor) and isinstance(now, torch.Tensor)
    return not (same and torch.equal(before.cpu(), now.cpu()))
