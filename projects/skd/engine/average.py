"""An exponential moving average of the student's weights."""

import copy
import itertools
import logging
import os
from typing import Any, Dict, List

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..modeling.student_class import student_of
from ..runtime.downloads import is_remote
from ..runtime.unwrap import unwrapped
from ..runtime.whole_files import write_whole

logger = logging.getLogger(__name__)
FILE = "model_ema.pth"
_PREFIX = "module."


class WeightAverage(HookBase):
    """
    torch's exponential moving average of the student, brought up to date after each iteration,
    buffers as well. It is in the checkpoints, so that a resume goes on with it, and becomes a plain
    checkpoint at the end. Register it before what writes the checkpoints.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str):
        """
        Args:
            model: distilling or not, in a data-parallel wrapper or not.
            decay: what is kept of the average in an iteration.
            folder: for the plain checkpoint.
        """
        self._student = student_of(unwrapped(model))
        self._folder = folder
        self._average = get_ema_multi_avg_fn(decay)
        self._averaged = copy.deepcopy(self._student)
        self._iterations = 0

    @property
    def model(self) -> nn.Module:
        """The student with the averaged weights; of its own class."""
        return self._averaged

    @torch.no_grad()
    def before_train(self) -> None:
        """Begin with the weights that were loaded: there may be no iteration left."""
        if self._iterations == 0:
            for averaged, now in zip(_tensors(self._averaged), _tensors(self._student)):
                torch._foreach_copy_(averaged, now)

    @torch.no_grad()
    def after_step(self) -> None:
        # not torch's AveragedModel: its counter goes to the GPU twice a step, and the host waits
        for averaged, now in zip(_tensors(self._averaged), _tensors(self._student)):
            if self._iterations == 0:
                torch._foreach_copy_(averaged, now)
            else:
                self._average(averaged, now, None)
        self._iterations += 1

    def after_train(self) -> None:
        if comm.is_main_process() and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._write(os.path.join(self._folder, FILE))

    def _write(self, path: str) -> None:
        content = {"model": self.model.state_dict(), "iteration": self.trainer.max_iter - 1}
        logger.info(f"Saving the average of the weights to {path}")
        if is_remote(path):
            with PathManager.open(path, "wb") as f:
                torch.save(content, f)
        else:
            write_whole(path, lambda f: torch.save(content, f))

    def state_dict(self) -> Dict[str, Any]:
        """In the form of torch's ``AveragedModel``."""
        model = {_PREFIX + name: value for name, value in self._averaged.state_dict().items()}
        return {"n_averaged": torch.tensor(self._iterations), **model}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._iterations = int(state["n_averaged"])
        named = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
        self._averaged.load_state_dict(named)


def _tensors(model: nn.Module) -> List[List[torch.Tensor]]:
    """Parameters and buffers: numbers that can be averaged in one call, and counters."""
    every = [x.detach() for x in itertools.chain(model.parameters(), model.buffers())]
    kinds = [[x for x in every if x.is_floating_point() == number] for number in (True, False)]
    return [kind for kind in kinds if kind]
