"""A run from a LazyConfig, with the keys of Detectron2's lazyconfig_train_net.py."""

import copy
import inspect
import logging
from functools import partial
from typing import Any, Dict, Optional

from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..config import run_settings
from ..config.lazy_config import check, check_teacher, image_format, is_distilling, made_by
from ..config.naming import LAZY, written_as
from ..modeling.build_detector import build_detector
from ..modeling.classes import class_names
from ..modeling.student_class import balance_of
from ..modeling.teacher import build_teacher, teacher_source
from ..runtime.loader import NamedErrors, build_train_loader
from ..runtime.reproducible import shared_seed
from .run import Run
from .teacher_quality import TeacherEvaluation, teacher_evaluation

logger = logging.getLogger(__name__)

# what is read of ``train`` beside the settings of a run, here or by Detectron2's default_setup
TRAIN = {"ddp", "cudnn_benchmark", "zero_grad_before_forward", "async_write_metrics"}


def lazy_run(cfg: DictConfig) -> Run:
    """
    Args:
        cfg: with ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``.

    Raises:
        ValueError: a setting of ``train`` that is missing, or a config without a teacher that
            distils.
    """
    check(cfg)
    check_teacher(cfg)
    train = cfg.train
    _check_train(train)
    _check_arguments(train)
    values = run_settings.read(cfg)
    seed = shared_seed(values["seed"])  # the loader's too, which the optimizer has not here
    return Run(
        **{**values, "seed": seed},
        cfg=cfg,
        build_model=lambda: _build_model(cfg),
        build_optimizer=lambda model: _build_optimizer(cfg.optimizer, model),
        build_scheduler=lambda optimizer: instantiate(cfg.lr_multiplier),
        build_train_loader=lambda: _build_train_loader(cfg.dataloader.train, seed),
        evaluate=lambda model: _evaluate(cfg, model),
        nested=False,
        teacher=_teacher_evaluation(cfg, values),
        checkpointer={k: v for k, v in train.checkpointer.items() if k != "period"},
        ddp=dict(train.get("ddp") or {}),
    )


def _build_model(cfg: DictConfig) -> nn.Module:
    with written_as(LAZY):
        model = instantiate(_with_heads(cfg).model).to(cfg.train.device)
        balance = balance_of(model)
        if balance is not None:
            balance.learn_length(cfg.train.max_iter)
        return model


def _with_heads(cfg: DictConfig) -> DictConfig:
    """Add, in a copy, what a student that learns from heads needs and the config leaves out."""
    if not isinstance(run_settings.select(cfg, "model.heads"), DictConfig):
        return cfg
    cfg = copy.deepcopy(cfg)
    heads, teacher = cfg.model.heads, cfg.model.teacher
    if not heads.get("student_classes"):
        heads.student_classes = class_names(run_settings.value_of(cfg, "train_sets") or [])
    if made_by(teacher) is build_teacher and "heads" not in teacher:
        teacher.heads = True
    return cfg


def _teacher_evaluation(cfg: DictConfig, values: Dict[str, Any]) -> Optional[TeacherEvaluation]:
    images, keys = values["evaluate_teacher"], run_settings.keys_of(LAZY)
    if not (images and is_distilling(cfg)):
        return None
    source = teacher_source(cfg)
    if source is None:
        raise ValueError(
            f"{keys['evaluate_teacher']} is {images}; it must be 0 where model.teacher is not made "
            "by skd.build_teacher: only of that the whole detector is known."
        )
    return teacher_evaluation(
        images,
        values["test_sets"],
        keys,
        build=partial(build_detector, source),
        build_loader=lambda: _build_test_loader(cfg.dataloader.test),
        image_format=image_format(cfg) or "BGR",
    )


def _check_train(train: DictConfig) -> None:
    """Gradients are always zeroed before the forward, so the key for it has what it asks for."""
    if train.get("async_write_metrics", False):
        logger.warning(
            "train.async_write_metrics is True, and metrics are written at once all the same: a "
            "loss that is not finite stops the run before the optimizer's step."
        )
    paths = [path.split(".") for path in run_settings.keys_of(LAZY).values()]
    read = {path[1] for path in paths if path[0] == "train"}
    unknown = sorted(set(train) - TRAIN - read)
    if unknown:
        logger.warning(f"No effect here: {', '.join(f'train.{key}' for key in unknown)}.")


# the sections of ``train`` that are somebody's arguments
_ARGUMENTS = {
    "checkpointer": set(inspect.signature(hooks.PeriodicCheckpointer.__init__).parameters),
    "ddp": {"fp16_compression", *inspect.signature(DistributedDataParallel.__init__).parameters},
}


def _check_arguments(train: DictConfig) -> None:
    for section, known in _ARGUMENTS.items():
        unknown = sorted(set(train.get(section) or ()) - known)
        if unknown:
            known = known - {"self", "checkpointer", "module"}
            raise ValueError(
                f"train.{section} has {', '.join(unknown)}; it must be of "
                f"{', '.join(sorted(known))}."
            )


def _build_optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    cfg = copy.deepcopy(cfg)  # the run's own config stays without the model
    cfg.params.model = model
    return instantiate(cfg)


def _build_train_loader(cfg: DictConfig, seed: int):
    """Detectron2's loader becomes one that can go on where it was; any other stays as it is."""
    if made_by(cfg) is build_detection_train_loader:
        cfg = {**cfg, "_target_": build_train_loader, "seed": seed}
    return instantiate(cfg)


def _build_test_loader(cfg: DictConfig):
    """Detectron2's loader, with errors that name the image."""
    if made_by(cfg) is build_detection_test_loader and cfg.get("mapper") is not None:
        cfg = {**cfg, "mapper": NamedErrors(instantiate(cfg.mapper))}
    return instantiate(cfg)


def _evaluate(cfg: DictConfig, model: nn.Module) -> Dict[str, Any]:
    if "evaluator" not in cfg.dataloader:
        return {}
    loader = _build_test_loader(cfg.dataloader.test)
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results
