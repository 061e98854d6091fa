"""The evaluation that an interruption came before: made when the run resumes."""

import logging
from typing import Any, Dict

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from .best import BestCheckpointer, EarlyStopping
from .precise_bn import PreciseBN

logger = logging.getLogger(__name__)


class Evaluation(hooks.EvalHook):
    """Detectron2's, which checkpoints tell the last iteration it was made after."""

    _last = -1

    def _do_eval(self) -> None:
        super()._do_eval()
        self._last = self.trainer.iter

    def is_missing(self, iteration: int) -> bool:
        """Whether one after an iteration is due, and not in the checkpoint to resume from."""
        return self._period > 0 and (iteration + 1) % self._period == 0 and self._last != iteration

    def state_dict(self) -> Dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._last = state["last"]


class MissedEvaluation(HookBase):
    """
    A checkpoint is written before the evaluation of its iteration, or beside it by a signal, and
    that evaluation, with which model is best and how long nothing got better, would be lost to a
    run that resumes there. So it is made before the first iteration. Register it last.
    """

    def before_train(self) -> None:
        trainer = self.trainer
        last = trainer.start_iter - 1
        kinds = (PreciseBN, Evaluation, BestCheckpointer, EarlyStopping)
        hooks_to_run = [h for h in trainer._hooks if isinstance(h, kinds)]
        missing = [h for h in hooks_to_run if hasattr(h, "is_missing") and h.is_missing(last)]
        if not missing or not 0 < trainer.start_iter < trainer.max_iter:
            return
        if comm.is_main_process():
            logger.info(
                f"The evaluation after iteration {last} is not in the checkpoint: made now."
            )
        # as it was after that iteration, for what is written now
        trainer.iter = trainer.storage.iter = last
        for hook in trainer._hooks:
            getattr(hook, "before_checkpoint", lambda: None)()
        for hook in hooks_to_run:
            if hook in missing or not isinstance(hook, PreciseBN):
                hook.after_step()
        trainer.iter = trainer.storage.iter = trainer.start_iter
