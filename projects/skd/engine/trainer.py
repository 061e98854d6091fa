"""Detectron2's DefaultTrainer, for a run from either form of config and for CPUs too."""

import logging
import os
import weakref
from collections import OrderedDict
from contextlib import suppress
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, default_writers, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.optim import Optimizer

from ..config import Config
from ..config.naming import YAML, written_as
from ..config.run_settings import as_mapping, is_learned
from ..data import register_shapes
from ..evaluation import build_evaluator, check_evaluator
from ..modeling.teacher_speed import PRECISIONS
from ..runtime.loader import NamedErrors, build_train_loader
from ..runtime.memory import PeakMemory
from ..runtime.plain_numbers import PlainNumbers
from ..runtime.preemption import PreemptionHook
from ..runtime.reproducible import ReproducibleSteps, shared_seed
from ..runtime.run_folder import RunFolder
from ..runtime.step import build_trainer
from ..runtime.unwrap import unwrapped
from .average import WeightAverage
from .best import BestCheckpointer, EarlyStopping, Finished
from .lazy_run import lazy_run
from .missed import Evaluation, MissedEvaluation
from .pictures import AttentionPictures
from .readout import DistillationLog
from .run import Run, check, memory_advice
from .schedule import build_scheduler
from .teacher_quality import TeacherQuality
from .tracking import TRACKERS
from .unlabelled import find_unlabelled
from .weights import RunCheckpointer
from .yaml_run import yaml_run

logger = logging.getLogger(__name__)


def wrap_data_parallel(model: nn.Module, **kwargs) -> nn.Module:
    """``create_ddp_model``, which assumes a GPU, for models on CPUs too."""
    if next(model.parameters()).device.type == "cpu":
        kwargs["device_ids"] = None
    return create_ddp_model(model, **kwargs)


class SKDTrainer(DefaultTrainer):
    """
    Trains what a config of either form describes, distilling or not, and evaluates it. For a
    YAML config its methods make the parts, as with ``DefaultTrainer``: override those.

    Distillation is the model's affair: :class:`DistillRCNN` works in any trainer. Here are only the
    hooks that show what it does.
    """

    _average: Optional[WeightAverage] = None
    _evaluated: Tuple[int, Dict[str, Any]] = (-1, {})

    def __init__(self, cfg: Config):
        """
        Raises:
            ValueError: a value of the config that the run would stop at later; names its key.
        """
        TrainerBase.__init__(self)  # DefaultTrainer's has no place for the parts of a run
        self.run = run = describe(cfg, weakref.proxy(self))
        self.cfg, self.start_iter, self.max_iter = run.cfg, 0, run.max_iter
        check(run)
        self._check_evaluators()
        unlabelled = find_unlabelled(run)
        model = run.build_model()
        if unlabelled is not None:
            unlabelled.check_model(model)
        optimizer, loader = run.build_optimizer(model), run.build_train_loader()
        if unlabelled is not None:
            loader = unlabelled.join(loader, model)
        steps = ReproducibleSteps(loader, shared_seed(run.seed))
        facts = run.facts(model, steps.seed)
        model = wrap_data_parallel(model, **run.ddp)
        self._trainer = _build_steps(run, model, loader, optimizer)
        self.scheduler = run.build_scheduler(optimizer)
        self.checkpointer = RunCheckpointer(
            model, run.output_dir, key=run.keys["weights"], trainer=weakref.proxy(self)
        )
        self.folder = RunFolder(self.checkpointer, facts, is_learned)
        numbers = PlainNumbers(model, run.checkpoint_period, run.eval_period)
        own = [*self.build_hooks(), *self._readouts()]
        averaged = [] if self._average is None else [self._average.model]
        preemption = PreemptionHook(self.checkpointer, averaged)
        self.register_hooks([self.folder, steps, numbers, *own, preemption])
        if run.patience:
            self.register_hooks([self._early_stopping()])
        self.register_hooks([MissedEvaluation()])

    def _check_evaluators(self) -> None:
        """Whether there is one for each test set; a project's own says so itself."""
        if _overridden(type(self)) & {"build_evaluator", "test"}:
            return
        for name in self.run.test_sets or () if self.run.form == YAML else ():
            check_evaluator(name)

    def build_hooks(self) -> List[Optional[HookBase]]:
        """DefaultTrainer's, in its order; the writer of metrics is the last."""
        run, main = self.run, comm.is_main_process()
        saving = self._periodic_checkpointer() if main else None
        augmented = None
        if run.evaluate_augmented is not None:
            augmented = hooks.EvalHook(0, lambda: self._keep(run.evaluate_augmented(self.model)))
        writing = hooks.PeriodicWriter(self.build_writers(), run.log_period) if main else None
        return [
            hooks.IterationTimer(),
            PeakMemory(torch.device(run.device), run.log_period),
            hooks.LRScheduler(),
            run.precise_bn(self.model),
            self._weight_average() if run.ema_decay else None,
            saving,
            Evaluation(run.eval_period, self._evaluate),
            augmented,
            self._best_checkpointer() if main else None,
            None if run.teacher is None else TeacherQuality(run.teacher, run.eval_period),
            writing,
        ]

    def _periodic_checkpointer(self) -> HookBase:
        run = self.run
        return hooks.PeriodicCheckpointer(
            self.checkpointer, run.checkpoint_period, **run.checkpointer
        )

    def _best_checkpointer(self) -> Optional[HookBase]:
        run = self.run
        if not run.best_metric:
            return None
        sets = run.test_sets or ()
        key = run.keys["best_metric"]
        return BestCheckpointer(run.eval_period, self.checkpointer, run.best_metric, sets, key)

    def _early_stopping(self) -> HookBase:
        run = self.run
        looks = run.eval_period, run.best_metric, run.test_sets or ()
        return EarlyStopping(self.checkpointer, *looks, run.patience, run.keys["patience"])

    def _weight_average(self) -> HookBase:
        self._average = WeightAverage(self.model, self.run.ema_decay, self.run.output_dir)
        return self._average

    def _readouts(self) -> List[HookBase]:
        """What is shown of a distillation; nothing in other trainings."""
        run = self.run
        return [AttentionPictures(run.vis_period), DistillationLog(5 * run.log_period)]

    def _evaluate(self) -> Dict[str, Any]:
        """Evaluate the student, and the average of its weights; once in an iteration."""
        if self._evaluated[0] == self.iter:  # an end that came early, after an evaluation
            return self._evaluated[1]
        results = {}
        if self._average is not None:  # first: the files of results are the student's in the end
            averaged = self.run.evaluate(self._average.model)
            results = {f"{name}_EMA": values for name, values in averaged.items()}
        results = {**self.run.evaluate(self.model), **results}
        self._evaluated = self.iter, results
        return self._keep(results)

    def _keep(self, results: Dict[str, Any]) -> Dict[str, Any]:
        self._last_eval_results = {**getattr(self, "_last_eval_results", {}), **(results or {})}
        return results

    def build_writers(self) -> List[EventWriter]:
        run, config = self.run, as_mapping(self.run.cfg)
        trackers = [
            TRACKERS[name](run.output_dir, config, lambda: self.start_iter > 0)
            for name in run.trackers
        ]
        return [*default_writers(run.output_dir, self.max_iter), *trackers]

    def resume_or_load(self, resume: bool = True) -> None:
        with written_as(self.run.form):
            self.start_iter = self.folder.resume_or_load(self.run.weights, resume)
        if self.start_iter >= self.max_iter and comm.is_main_process():
            logger.warning(
                f"The checkpoint in '{self.run.output_dir}' has {self.start_iter} iterations, and "
                f"{self.run.keys['max_iter']} is {self.max_iter}: NOTHING IS LEFT TO TRAIN, and "
                f"the model is evaluated. To train on, raise {self.run.keys['max_iter']}."
            )

    def train(self) -> Dict[str, Any]:
        """
        Returns:
            Results of the last evaluation, in the main process.
        """
        with suppress(Finished), written_as(self.run.form):
            TrainerBase.train(self, self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", {})
        self.run.verify(results)
        return results

    def after_train(self) -> None:
        """The hooks', each also after one that failed: what was taken is given back."""
        self.storage.iter = self.iter
        try:
            _end(self._hooks)
        except Exception:  # TrainerBase logs those of the training only
            logger.exception("Exception after the training:")
            raise

    def state_dict(self) -> Dict[str, Any]:
        if self.run.nested:
            return super().state_dict()
        return {**self._trainer.state_dict(), **TrainerBase.state_dict(self)}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        if self.run.nested:
            return super().load_state_dict(state_dict)
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict({**state_dict, "hooks": {}})

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer):
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = NamedErrors(DatasetMapper(cfg, False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        """Each of several test sets has a folder of its own, or one would overwrite the other."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, dataset_name)
        sigmas, ignore = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR, sigmas, folder, ignore)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
        """``TEST.AUG``, as Detectron2's tools/train_net.py does it."""
        model = unwrapped(model)
        logger.info("Evaluating with test-time augmentation.")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        names = cfg.DATASETS.TEST
        evaluators = [cls.build_evaluator(cfg, name, output_folder=folder) for name in names]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", values) for name, values in results.items())


def describe(cfg: Config, trainer: Any = SKDTrainer) -> Run:
    """
    The run that a config of either form describes.

    Args:
        cfg: a YAML config or a LazyConfig.
        trainer: an SKDTrainer or a subclass, whose methods make the parts of a YAML config's run.
    """
    register_shapes()  # the config may name them
    return yaml_run(cfg, trainer) if isinstance(cfg, CfgNode) else lazy_run(cfg)


def _build_steps(run: Run, model: nn.Module, loader: Any, optimizer: Any):
    """What takes the training steps: with gradient accumulation and mixed precision."""
    counts = run.accumulate, run.skip_non_finite
    steps = build_trainer(model, loader, optimizer, run.amp, *counts, memory_advice(run))
    if run.amp:
        steps.precision = PRECISIONS[run.amp_precision]
    return steps


def _overridden(kind: type) -> Set[str]:
    """Names of what a project's Trainer defines on top of :class:`SKDTrainer`."""
    bases = kind.__mro__[: kind.__mro__.index(SKDTrainer)]
    return {name for base in bases for name in vars(base)}


def _end(trainer_hooks: Sequence[HookBase]) -> None:
    if trainer_hooks:
        try:
            trainer_hooks[0].after_train()
        finally:
            _end(trainer_hooks[1:])
