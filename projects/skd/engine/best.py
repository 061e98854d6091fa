"""The best checkpoint of a run, and its end when nothing gets better."""

import logging
import math
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Sequence

from detectron2.engine import HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

logger = logging.getLogger(__name__)


class BestCheckpointer(hooks.BestCheckpointer):
    """
    Detectron2's, which after a resume still knows the best result up to then: also after one from
    the best checkpoint itself, which Detectron2 writes before it takes note of the result.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        metric: str,
        test_sets: Sequence[str],
        key: str = "the best metric",
    ):
        """
        Args:
            eval_period, checkpointer: as for Detectron2's.
            metric: see ``SOLVER.BEST_METRIC``.
            test_sets: its evaluations are on these.
            key: that names the metric, for the log.
        """
        super().__init__(eval_period, checkpointer, metric)
        self._of, self._key, self._warned = _Result(metric, test_sets), key, False

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest()
        if self._of.metric in latest:
            self._compare_with_best(*latest[self._of.metric])
        elif not self._warned:
            self._warned = True
            self._warn()

    def _compare_with_best(self, value: float, iteration: int) -> None:
        before = self.best_metric
        better = before is None or value > before
        if better and self._update_best(value, iteration):
            with _last_iteration(self.trainer):
                self._checkpointer.save(self._file_prefix, iteration=iteration)
            words = "the first result" if before is None else f"better than {before:.5f} before"
            logger.info(f"{self._of.metric} is {value:.5f}, {words}: kept as model_best.pth.")

    def _warn(self) -> None:
        """No error: what is trained is worth having all the same."""
        results = flatten_results_dict(getattr(self.trainer, "_last_eval_results", {}))
        names = [name for name in results if "/AP-" not in name]  # of single classes
        logger.warning(
            f"{self._key} is '{self._of.metric}', which is not among this evaluation's results: "
            f"{', '.join(names) or 'there are none'}. While it is missing, no model_best.pth is "
            "written and no patience ends the training; it goes on and keeps its other checkpoints."
        )

    def state_dict(self) -> Dict[str, Any]:
        return {**self._of.state(), "best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if self._of.is_that_of(state):
            self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


@contextmanager
def _last_iteration(trainer: TrainerBase) -> Iterator[None]:
    """
    Within it a trainer's iteration is the last one that it has done. After the training, where it
    evaluates once more, it is a later one, and a resume from there would leave one out.
    """
    now = trainer.iter
    trainer.iter = min(now, max(trainer.max_iter, trainer.start_iter) - 1)
    try:
        yield
    finally:
        trainer.iter = now


class _Result:
    """What a best result is of: a metric, and the test sets that it is measured on."""

    def __init__(self, metric: str, test_sets: Sequence[str]):
        named = [name for name in test_sets if metric.startswith(f"{name}/")]
        self.metric, self.test_sets = metric, named or list(test_sets)

    def state(self) -> Dict[str, Any]:
        return {"metric": self.metric, "test_sets": self.test_sets}

    def is_that_of(self, state: Dict[str, Any]) -> bool:
        """Says so if not. States of earlier versions do not know all of it."""
        before, now = {**self.state(), **state}, self.state()
        same = all(before[key] == value for key, value in now.items())
        if not same:
            logger.warning(
                f"The best result so far is {_words(before)}; the best of {_words(now)} starts "
                "anew."
            )
        return same


def _words(state: Dict[str, Any]) -> str:
    return f"{state['metric']} on {', '.join(state['test_sets']) or 'no named test set'}"


class Finished(BaseException):
    """Ends a training in good order. No Exception: Detectron2's loop would log it as an error."""


class EarlyStopping(HookBase):
    """
    Ends the training, with a final checkpoint and as after its last iteration, when a result has
    not become better in so many evaluations. Register it last.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        eval_period: int,
        metric: str,
        test_sets: Sequence[str],
        patience: int,
        key: str,
    ):
        """
        Args:
            checkpointer: of the run.
            eval_period: iterations from one evaluation to the next.
            metric: see ``SOLVER.BEST_METRIC``.
            test_sets: its evaluations are on these.
            patience: evaluations.
            key: that names the patience, for the log.
        """
        self._checkpointer, self._period, self._key = checkpointer, eval_period, key
        self._metric, self._patience = metric, patience
        self._of = _Result(metric, test_sets)
        self._best, self._waited, self._looked_at = -math.inf, 0, -1

    def before_step(self) -> None:
        if self._waited >= self._patience:  # resumed after its end
            logger.warning(f"This run has stopped already; raise {self._key} to go on.")
            raise Finished

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done >= self.trainer.max_iter:
            return
        self._look()
        # of process 0, which has the results
        self._best, self._waited = comm.all_gather((self._best, self._waited))[0]
        if self._waited >= self._patience:
            self._stop()

    def _look(self) -> None:
        """At the latest evaluation, once."""
        storage = getattr(self.trainer, "storage", None)  # none before the training
        latest = storage.latest() if storage is not None else {}
        # missing: BestCheckpointer warns
        value, iteration = latest.get(self._metric, (math.nan, self._looked_at))
        if iteration == self._looked_at:
            return
        self._looked_at = iteration
        if math.isfinite(value) or math.isfinite(self._best):  # else there was nothing to find yet
            better = value > self._best
            self._waited = 0 if better else self._waited + 1
            self._best = value if better else self._best

    def _stop(self) -> None:
        logger.info(
            f"{self._metric} has not become better than {self._best:.2f} in {self._waited} "
            f"evaluations ({self._key}): the training ends."
        )
        for hook in self.trainer._hooks:
            getattr(hook, "before_checkpoint", lambda: None)()
        if comm.is_main_process():
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
        self.trainer.max_iter = self.trainer.iter + 1  # for what looks whether this is the end
        raise Finished

    def state_dict(self) -> Dict[str, Any]:
        self._look()  # the best checkpoint, or one after a signal, is written before after_step()
        return {**self._of.state(), "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        if self._of.is_that_of(state):
            self._best, self._waited = state["best"], state["waited"]
