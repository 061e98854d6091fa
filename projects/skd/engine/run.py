"""A run -- what is trained, on what, how long, and where it goes -- whichever form describes it."""

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from ..config import Config
from ..runtime.step import check_accumulate
from .teacher_quality import TeacherEvaluation


@dataclass
class Run:
    """
    Made by :func:`skd.engine.describe` from a YAML config or a LazyConfig. None stands for what a
    LazyConfig does not say, because something of the user's own takes the place.

    Attributes:
        cfg: what it was made from.
        keys: from the names below to the key, or the path, that the user wrote.
        build_model, build_optimizer, build_scheduler, build_train_loader: make them, each once.
        evaluate: a model on all test sets; returns the results.
        evaluate_augmented: the same with test-time augmentation; None if it is not wanted.
        teacher: how to look at what the teacher finds; None if that is not wanted.
        precise_bn: the hook that ``TEST.PRECISE_BN`` asks for, for a model; may return None.
        weights: to start from.
        vis_period: iterations from one picture of attention to the next; 0 for none.
        amp: what mixed precision computes in; None for none.
        accumulate, skip_non_finite: see ``SOLVER.ACCUMULATE``, ``SOLVER.SKIP_NON_FINITE``.
        best_metric: see ``SOLVER.BEST_METRIC``.
        checkpointer: arguments of Detectron2's ``PeriodicCheckpointer``.
        ddp: arguments of ``create_ddp_model``.
        expected: results to compare the evaluation's with; see ``TEST.EXPECTED_RESULTS``.
        nested: whether checkpoints hold the state as ``DefaultTrainer`` or as
            ``lazyconfig_train_net.py`` writes it.
    """

    cfg: Config
    keys: Dict[str, str]
    build_model: Callable[[], nn.Module]
    build_optimizer: Callable[[nn.Module], Optimizer]
    build_scheduler: Callable[[Optimizer], Any]
    build_train_loader: Callable[[], Iterable]
    evaluate: Callable[[nn.Module], Dict[str, Any]]
    output_dir: str
    weights: str
    device: str
    seed: int
    max_iter: int
    eval_period: int
    checkpointer: Dict[str, Any]
    train_sets: Optional[List[str]]
    test_sets: Optional[List[str]]
    nested: bool
    learning_rate: Optional[float] = None
    images_per_batch: Optional[int] = None
    num_workers: Optional[int] = None
    accumulate: int = 1
    skip_non_finite: int = 0
    best_metric: str = ""
    log_period: int = 20
    vis_period: int = 0
    amp: Optional[torch.dtype] = None
    ddp: Dict[str, Any] = field(default_factory=dict)
    expected: List[Any] = field(default_factory=list)
    evaluate_augmented: Optional[Callable[[nn.Module], Dict[str, Any]]] = None
    teacher: Optional[TeacherEvaluation] = None
    precise_bn: Callable[[nn.Module], Optional[HookBase]] = lambda model: None

    @property
    def datasets(self) -> List[str]:
        return [*(self.train_sets or ()), *(self.test_sets or ())]

    def verify(self, results: Dict[str, Any]) -> None:
        """Compare with the expected results, as Detectron2 does: exits with 1 if they differ."""
        if comm.is_main_process() and self.expected:
            verify_results(CfgNode({"TEST": {"EXPECTED_RESULTS": self.expected}}), results)


def check(run: Run, training: bool = True) -> None:
    """
    Raises:
        ValueError: a value that the run would stop at later; names its key.
    """
    if training:
        _check_numbers(run)
        _check_best_metric(run)
        _check_datasets(run.keys["train_sets"], run.train_sets)
    _check_datasets(run.keys["test_sets"], run.test_sets)
    _check_device(run)
    if not training:
        return
    if run.images_per_batch is not None:
        check_accumulate(run.accumulate, run.images_per_batch, run.keys["accumulate"])
    if run.amp is not None and not torch.cuda.is_available():
        raise ValueError(
            f"{run.keys['amp']} needs a GPU: Detectron2's AMPTrainer runs on CUDA only. Set it "
            "False on CPUs."
        )


def _check_device(run: Run) -> None:
    if str(run.device).startswith("cuda") and not torch.cuda.is_available():
        key = run.keys["device"]
        raise ValueError(
            f"{key} is {run.device!r}, and PyTorch finds no GPU here: set {key} cpu, or look at "
            "the driver and the build of PyTorch."
        )


def _check_datasets(key: str, names: Optional[List[str]]) -> None:
    unknown = [name for name in names or () if name not in DatasetCatalog]
    if unknown:
        raise ValueError(
            f"{key} names {', '.join(map(repr, unknown))}, which nobody has registered; give "
            "--register-coco NAME JSON IMAGES for data in COCO's format."
        )


def _check_best_metric(run: Run) -> None:
    key, metric = run.keys["best_metric"], run.best_metric
    if metric and (not isinstance(metric, str) or metric.count("/") != 1):
        raise ValueError(f"{key} is {metric!r}; it must be TASK/RESULT, e.g. 'bbox/AP', or empty.")
    if metric and run.test_sets is not None and not run.test_sets:
        raise ValueError(f"{key} is {metric!r}, and {run.keys['test_sets']} is empty.")


def _check_numbers(run: Run) -> None:
    world, images = comm.get_world_size(), run.images_per_batch
    period = run.checkpointer.get("period")
    share = _whole(images, 1) and images % world == 0
    above, least = "a whole number above 0", "a whole number, 0 or above"
    for name, value, good, expected in (
        ("max_iter", run.max_iter, _whole(run.max_iter, 1), above),
        ("learning_rate", run.learning_rate, _positive(run.learning_rate), "a number above 0"),
        ("images_per_batch", images, share, f"a multiple of the number of processes, {world}"),
        ("checkpoint_period", period, _whole(period, 1), above),
        ("eval_period", run.eval_period, _whole(run.eval_period, 0), f"{least}; 0 for never"),
        ("vis_period", run.vis_period, _whole(run.vis_period, 0), f"{least}; 0 for never"),
        ("skip_non_finite", run.skip_non_finite, _whole(run.skip_non_finite, 0), least),
        ("num_workers", run.num_workers, _whole(run.num_workers, 0), least),
        ("train_sets", run.train_sets, bool(run.train_sets), "a dataset's name"),
    ):
        if not good and value is not None:
            raise ValueError(f"{run.keys[name]} is {value!r}; it must be {expected}.")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf
