"""Evaluate what a run describes."""

import logging
import os
import time
from functools import partial
from typing import Any, Callable, Dict

from detectron2.utils import comm
from torch import nn

from ..config import Config, run_settings
from ..config.naming import written_as
from ..evaluation import write_results
from ..runtime.checkpoint import SafeCheckpointer
from ..runtime.lock import user_of
from ..runtime.record import append_record, describe_run
from .run import Run, check
from .weights import RunCheckpointer

logger = logging.getLogger(__name__)


def beside_training(cfg: Config, resume: bool) -> str:
    """
    Give an evaluation a folder of its own, in place, if another process trains in the run's folder.
    It is below that one, and the weights are that training's last checkpoint if it would resume.

    Returns:
        What to tell the user; empty where nobody trains there.
    """
    folder = run_settings.value_of(cfg, "output_dir")
    own = os.path.join(folder, f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}")
    last = SafeCheckpointer(nn.Module(), folder).get_checkpoint_file()
    other, own, last = comm.all_gather((user_of(folder), own, last))[0]
    if other is None:
        return ""
    run_settings.put(cfg, "output_dir", own)
    if resume and last:
        run_settings.put(cfg, "weights", last)
    return f"A training is using '{folder}' ({other}): this evaluation writes to '{own}'."


def evaluate_model(run: Run, model: nn.Module) -> Dict[str, Any]:
    """Results on all test sets, with those of test-time augmentation if the run asks for it."""
    results = run.evaluate(model)
    if run.evaluate_augmented is not None:
        results.update(run.evaluate_augmented(model))
    return results


def prepare_evaluation(run: Run, resume: bool = False) -> Callable[[], Dict[str, Any]]:
    """
    Build the model and load the weights.

    Args:
        run: from :func:`skd.engine.describe`.
        resume: take the last checkpoint of the run's folder in place of its weights, if any; a
            warning where there is none.

    Returns:
        What evaluates it, and writes the results as training does. It returns them in the main
        process, and an empty dict in others.
    """
    check(run, training=False)
    model = run.build_model()
    append_record(run.output_dir, describe_run(run.facts(model, run.seed, training=False)))
    checkpointer = RunCheckpointer(model, run.output_dir, key=run.keys["weights"])
    with written_as(run.form):
        loaded = checkpointer.resume_or_load(run.weights, resume=resume)
    _warn_of_weights(run, checkpointer.loaded_from, resume)
    return partial(_evaluate, run, model, loaded.get("iteration", 0))


def _warn_of_weights(run: Run, path: str, resume: bool) -> None:
    """No errors: who measures time evaluates random weights on purpose, as Detectron2 lets them."""
    if not comm.is_main_process():
        return
    if resume and path == run.weights:
        logger.warning(
            f"Nothing to resume from in '{run.output_dir}': it has no checkpoint, and "
            f"{run.keys['weights']}, '{path}', is evaluated."
        )
    if not path:
        logger.warning(f"{run.keys['weights']} is '': RANDOM WEIGHTS ARE EVALUATED.")


def evaluate(run: Run, resume: bool = False) -> Dict[str, Any]:
    """:func:`prepare_evaluation`, and evaluate."""
    return prepare_evaluation(run, resume)()


def _evaluate(run: Run, model: nn.Module, iteration: int) -> Dict[str, Any]:
    results = evaluate_model(run, model)
    write_results(results, run.output_dir, iteration)
    run.verify(results)
    return results
