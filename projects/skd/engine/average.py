"""An exponential moving average of the student's weights."""

import logging
import os
from typing import Any, Dict

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..modeling.student_class import student_of
from ..runtime.whole_files import write_whole

logger = logging.getLogger(__name__)
FILE = "model_ema.pth"


class WeightAverage(HookBase):
    """
    torch's ``AveragedModel`` of the student, brought up to date after each iteration, buffers as
    well. It is in the checkpoints, so that a resume goes on with it, and becomes a plain checkpoint
    at the end. Register it before what writes the checkpoints.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str):
        """
        Args:
            model: distilling or not, in a data-parallel wrapper or not.
            decay: what is kept of the average in an iteration.
            folder: for the plain checkpoint.
        """
        self._student = student_of(getattr(model, "module", model))
        self._folder = folder
        average = get_ema_multi_avg_fn(decay)
        self._averaged = AveragedModel(self._student, multi_avg_fn=average, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The student with the averaged weights; of its own class."""
        return self._averaged.module

    def after_step(self) -> None:
        self._averaged.update_parameters(self._student)

    def after_train(self) -> None:
        if comm.is_main_process() and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._write(os.path.join(self._folder, FILE))

    def _write(self, path: str) -> None:
        content = {"model": self.model.state_dict(), "iteration": self.trainer.max_iter - 1}
        logger.info(f"Saving the average of the weights to {path}")
        if "://" in path:
            with PathManager.open(path, "wb") as f:
                torch.save(content, f)
        else:
            write_whole(path, lambda f: torch.save(content, f))

    def state_dict(self) -> Dict[str, Any]:
        return self._averaged.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)
