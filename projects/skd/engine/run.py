"""A run -- what is trained, on what, how long, and where it goes -- whichever form describes it."""

import importlib.util
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from ..config import Config, form_of, lazy_config
from ..config.naming import LAZY, YAML, called, setting_to, written_as
from ..config.run_settings import RunSettings, as_mapping, form_name, keys_of, settings
from ..modeling.student_class import balance_of
from ..runtime.record import RunFacts
from ..runtime.user_errors import UserError
from .teacher_quality import TeacherEvaluation


@dataclass
class Run(RunSettings):
    """
    Made by :func:`skd.engine.describe` from a YAML config or a LazyConfig: the settings of
    :class:`RunSettings`, and what makes the parts.

    Attributes:
        cfg: what it was made from.
        build_model, build_optimizer, build_scheduler, build_train_loader: make them, each once.
        evaluate: a model on all test sets; returns the results.
        nested: whether checkpoints hold the trainer's state as ``DefaultTrainer`` writes it, in an
            entry of its own (True), or as ``lazyconfig_train_net.py`` does (False).
        checkpointer: further arguments of Detectron2's ``PeriodicCheckpointer``.
        ddp: arguments of ``create_ddp_model``.
        evaluate_augmented: as ``evaluate``, with test-time augmentation; None if not wanted.
        teacher: how to look at what the teacher finds; None if that is not wanted.
        precise_bn: the hook that ``TEST.PRECISE_BN`` asks for, for a model; may return None.
    """

    cfg: Config
    build_model: Callable[[], nn.Module]
    build_optimizer: Callable[[nn.Module], Optimizer]
    build_scheduler: Callable[[Optimizer], Any]
    build_train_loader: Callable[[], Iterable]
    evaluate: Callable[[nn.Module], Dict[str, Any]]
    nested: bool
    checkpointer: Dict[str, Any] = field(default_factory=dict)
    ddp: Dict[str, Any] = field(default_factory=dict)
    evaluate_augmented: Optional[Callable[[nn.Module], Dict[str, Any]]] = None
    teacher: Optional[TeacherEvaluation] = None
    precise_bn: Callable[[nn.Module], Optional[HookBase]] = lambda model: None

    @property
    def form(self) -> str:
        """The form of its config; errors name settings as it does, see ``config/naming.py``."""
        return form_name(self.cfg)

    @property
    def keys(self) -> Dict[str, str]:
        """Keys or paths, as the user wrote them, by the settings' names."""
        return keys_of(self.form)

    @property
    def datasets(self) -> List[str]:
        return [*(self.train_sets or ()), *(self.test_sets or ())]

    def facts(self, model: nn.Module, seed: int, training: bool = True) -> RunFacts:
        """What goes into ``runs.jsonl`` of the run, with a model that it has built."""
        teacher = getattr(model, "teacher", None)
        weights, made_from = getattr(teacher, "weights", None), getattr(teacher, "config", None)
        return RunFacts(
            datasets=[*self.datasets, *self.unlabelled] if training else self.test_sets or (),
            seed=seed,
            config=as_mapping(self.cfg) if training else None,
            kind="without a teacher" if teacher is None else "with a teacher",
            files={"teacher": weights} if weights else {},
            parts={"teacher": made_from} if training and made_from else {},
            notes=self._length_notes(model),
        )

    def _length_notes(self, model: nn.Module) -> Dict[str, str]:
        """A longer run is another one from its start, where something goes by the length."""
        balance, schedule = balance_of(model), form_of(self.cfg).schedule_by_length(self.cfg)
        with written_as(self.form):
            dependent = [*schedule, *([] if balance is None else balance.by_length())]
        words = f" (from here on as if it had been so from the start: {'; '.join(dependent)})"
        return {self.keys["max_iter"]: words} if dependent else {}

    def verify(self, results: Dict[str, Any]) -> None:
        """Compare with the expected results, as Detectron2 does: exits with 1 if they differ."""
        if comm.is_main_process() and self.expected:
            self._check_tasks(results)
            verify_results(CfgNode({"TEST": {"EXPECTED_RESULTS": self.expected}}), results)

    def _check_tasks(self, results: Dict[str, Any]) -> None:
        unknown = [row[0] for row in self.expected if row[0] not in results]
        if unknown:
            raise UserError(
                f"{self.keys['expected']} names {', '.join(map(repr, unknown))}, and the results "
                f"are of {', '.join(map(repr, results)) or 'nothing'}; it must name these."
            )


def memory_advice(run: Run) -> str:
    """What needs less memory, in the user's words."""
    keys = ("INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN")
    with written_as(run.form):
        sizes = " and ".join(dict.fromkeys(map(called, keys)))
        precision, levels = called("MODEL.TEACHER.PRECISION"), called("MODEL.DISTILLER.LEVELS")
    return (
        f"{sizes} can make the images smaller; {precision} halves the teacher's maps on a GPU; "
        f"{levels} distils fewer levels"
    )


def check(run: Run, training: bool = True) -> None:
    """
    Raises:
        ValueError: a value that the run would stop at later; names its key.
    """
    with written_as(run.form):
        _check(run, training)


def _check(run: Run, training: bool) -> None:
    if training:
        if run.form == LAZY:
            lazy_config.check_training(run.cfg)
        _check_values(run)
        _check_best_metric(run)
        _check_trackers(run)
        check_registered(run.keys["train_sets"], run.train_sets)
    else:
        _check_values(run, ["expected"])
    check_registered(run.keys["test_sets"], run.test_sets)
    check_device(str(run.device), run.keys["device"])
    _check_proposals(run, training)
    if training:
        _check_accumulate(run)
        _check_amp(run)


def _check_values(run: Run, names: Optional[Sequence[str]] = None) -> None:
    """Each by itself, as it is declared; all of them without ``names``."""
    for setting in settings():
        value = getattr(run, setting.name) if names is None or setting.name in names else None
        expected = setting.must(value) if value is not None else ""
        if expected:
            raise ValueError(f"{run.keys[setting.name]} is {value!r}; it must be {expected}.")


def check_device(device: str, key: str) -> None:
    """
    Raises:
        ValueError: not a device, or one that is not there; names ``key``.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(
            f"{key} is {device!r}; it must be cpu, cuda or the like: {error}"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{key} is {device!r}, and PyTorch finds no GPU here: set {setting_to(key, 'cpu')}, or "
            "look at the driver and the build of PyTorch."
        )
    if kind not in ("cuda", "cpu"):
        _check_there(device, kind, key)


def _check_there(device: str, kind: str, key: str) -> None:
    try:
        torch.zeros(1, device=device).cpu()
    except Exception:  # each backend has an error of its own
        raise ValueError(
            f"{key} is {device!r}, and PyTorch has no {kind} here: set {setting_to(key, 'cpu')}."
        ) from None


def _check_amp(run: Run) -> None:
    if run.amp and run.amp_precision == "fp16" and not str(run.device).startswith("cuda"):
        raise ValueError(
            f"{run.keys['amp']} is True, and {setting_to(run.keys['amp_precision'], 'fp16')} needs "
            "a GPU: set it bf16, or the former False."
        )


def _check_accumulate(run: Run) -> None:
    share = (run.images_per_batch or 0) // comm.get_world_size()  # 0: not known
    if share % run.accumulate:
        raise ValueError(
            f"{run.keys['accumulate']} is {run.accumulate}, and each process gets {share} images a "
            "step: it must divide them into equal micro-batches."
        )


def check_registered(key: str, names: Optional[Sequence[str]]) -> None:
    """Raises ValueError for datasets that nobody knows; ``key`` is where their names are from."""
    unknown = [name for name in names or () if name not in DatasetCatalog]
    if unknown:
        raise ValueError(
            f"{key} names {', '.join(map(repr, unknown))}, which nobody has registered; give "
            "--register-coco NAME JSON IMAGES for data in COCO's format."
        )


def _check_proposals(run: Run, training: bool) -> None:
    """What Detectron2's loaders assert."""
    if run.form != YAML or not run.cfg.MODEL.LOAD_PROPOSALS:
        return
    for part in ("TRAIN", "TEST") if training else ("TEST",):
        sets, key = run.cfg.DATASETS[part], f"PROPOSAL_FILES_{part}"
        files = run.cfg.DATASETS[key]
        if len(files) != len(sets):
            raise ValueError(
                f"MODEL.LOAD_PROPOSALS is True, and DATASETS.{key} is {files}; it must name a file "
                f"for each of DATASETS.{part}: {sets}."
            )


def _check_best_metric(run: Run) -> None:
    key, metric = run.keys["best_metric"], run.best_metric
    if metric and run.test_sets is not None and not run.test_sets:
        raise ValueError(f"{key} is {metric!r}, and {run.keys['test_sets']} is empty.")
    # a LazyConfig's one evaluator gives its results without a set's name
    if metric and run.test_sets and run.form == YAML:
        _check_set_of_metric(key, metric, run.test_sets)
    if metric and "_EMA/" in metric and not run.ema_decay:
        raise ValueError(
            f"{key} is {metric!r}, and {run.keys['ema_decay']} is 0: there are no averaged weights."
        )
    if run.patience and not (metric and run.eval_period):
        name = key if run.eval_period else run.keys["eval_period"]
        value = metric if run.eval_period else 0
        raise ValueError(
            f"{run.keys['patience']} is {run.patience}, and {name} is {value!r}: it needs an "
            "evaluation, and a result to look at."
        )


def _check_set_of_metric(key: str, metric: str, names: Sequence[str]) -> None:
    """Results, also of the averaged weights, have a test set's name where there are several."""
    starts = [f"{name}{of}/" for name in names for of in ("", "_EMA")]
    named = any(metric.startswith(s) and "/" in metric[len(s) :] for s in starts)
    plain = "/".join(metric.split("/")[-2:])
    if len(names) > 1 and not named:
        raise ValueError(
            f"{key} is {metric!r}, and there are {len(names)} test sets: say of which, e.g. "
            f"'{names[0]}/{plain}'."
        )
    if len(names) == 1 and named:
        raise ValueError(f"{key} is {metric!r}; with one test set it must be '{plain}'.")


def _check_trackers(run: Run) -> None:
    missing = [name for name in run.trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{run.keys['trackers']} names {', '.join(missing)}, which is not installed: "
            f"pip install {' '.join(missing)}, or leave it out."
        )
