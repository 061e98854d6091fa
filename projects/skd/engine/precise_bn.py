"""Precise statistics of batch norms before each evaluation."""

import logging
from typing import Any, Dict, Iterator

from detectron2.engine import hooks
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..runtime.loader import TrainLoader
from ..runtime.plain_numbers import read_numbers, write_numbers
from ..runtime.preemption import PreemptionHook

logger = logging.getLogger(__name__)


class PreciseBN(hooks.PreciseBN):
    """
    Detectron2's, but

    - of the first images of the training's order each time: where it goes on in that order, a run
      that resumes has statistics of other images than an uninterrupted one;
    - numbers that a forward in training mode changes besides (the loss normalizers of RetinaNet and
      FCOS) are put back: the training goes on as without these passes;
    - a signal that ends the training is not kept waiting, in one process: the passes that are left
      are not made, the statistics stay the running ones, and a run that resumes makes them first.
    """

    _stopped = -1  # the last iteration after which they were left out

    def update_stats(self) -> None:
        if self._disabled:
            return
        loaders = self._data_loader, self.trainer.data_loader
        if all(isinstance(loader, TrainLoader) for loader in loaders):
            loaders[0].resume(loaders[1].seed, 0)  # which a checkpoint may have brought
        model, numbers = self._model, read_numbers(self._model)
        norms = [b for m in get_bn_modules(model) for b in m.buffers()]
        before = [b.clone() for b in norms]
        self._stopped, self._data_iter = -1, self._batches()
        try:
            self._model = _PassesForBatches(model)
            super().update_stats()
        finally:
            self._model, self._data_iter = model, None
        write_numbers(model, numbers)
        if self._stopped >= 0:
            for b, value in zip(norms, before):
                b.copy_(value)
            logger.warning("Precise statistics of batch norms are left out: the training stops.")

    def _batches(self) -> Iterator[Any]:
        """The loader's, and None where nobody waits for them any more."""
        batches = iter(self._data_loader)
        while True:
            if self._is_stopping():
                self._stopped = self.trainer.iter
            yield None if self._stopped >= 0 else next(batches)

    def _is_stopping(self) -> bool:
        # processes would differ in where they stop, and wait for each other in synchronized norms
        last = self.trainer.iter + 1 >= self.trainer.max_iter
        if last or comm.get_world_size() > 1:
            return False
        return any(h.is_stopping for h in self.trainer._hooks if isinstance(h, PreemptionHook))

    def is_missing(self, iteration: int) -> bool:
        """Whether they were left out after an iteration, in the checkpoint to resume from."""
        return self._stopped == iteration

    def state_dict(self) -> Dict[str, Any]:
        return {"stopped": self._stopped}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._stopped = state["stopped"]


class _PassesForBatches(nn.Module):
    """A model that makes no pass for None in place of a batch."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return None if inputs is None else self.model(inputs)
