"""A run from a LazyConfig, with the keys of Detectron2's lazyconfig_train_net.py."""

import copy
import logging
from functools import partial
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from ..config.lazy import check_teacher, image_format, is_distilling
from ..config.naming import LAZY, written_as
from ..modeling.build_detector import build_detector
from ..modeling.teacher import build_teacher
from ..runtime.loader import NamedErrors, build_train_loader
from ..runtime.reproducible import shared_seed
from .run import Run
from .teacher_quality import TeacherEvaluation, teacher_evaluation

logger = logging.getLogger(__name__)

KEYS = {
    "weights": "train.init_checkpoint",
    "device": "train.device",
    "max_iter": "train.max_iter",
    "learning_rate": "optimizer.lr",
    "images_per_batch": "dataloader.train.total_batch_size",
    "checkpoint_period": "train.checkpointer.period",
    "accumulate": "train.accumulate",
    "skip_non_finite": "train.skip_non_finite",
    "best_metric": "train.best_metric",
    "amp": "train.amp.enabled",
    "eval_period": "train.eval_period",
    "vis_period": "train.vis_period",
    "evaluate_teacher": "train.evaluate_teacher",
    "num_workers": "dataloader.train.num_workers",
    "train_sets": "dataloader.train.dataset.names",
    "test_sets": "dataloader.test.dataset.names",
}
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
# what is read of ``train``, here or by Detectron2's default_setup
TRAIN = {
    "output_dir", "init_checkpoint", "max_iter", "amp", "ddp", "checkpointer", "eval_period",
    "log_period", "device", "seed", "cudnn_benchmark", "accumulate", "skip_non_finite",
    "zero_grad_before_forward", "async_write_metrics", "expected_results", "vis_period",
    "best_metric", "evaluate_teacher",
}  # fmt: skip


def lazy_run(cfg: DictConfig) -> Run:
    """
    Args:
        cfg: with ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``.

    Raises:
        ValueError: a setting of ``train`` that cannot be followed, or a config without a teacher
            that distils.
    """
    check_teacher(cfg)
    train = cfg.train
    _check_train(train)
    seed = shared_seed(train.get("seed", -1))  # the loader's too, which the optimizer has not here
    return Run(
        cfg=cfg,
        keys=KEYS,
        build_model=lambda: _build_model(cfg),
        build_optimizer=lambda model: _build_optimizer(cfg.optimizer, model),
        build_scheduler=lambda optimizer: instantiate(cfg.lr_multiplier),
        build_train_loader=lambda: _build_train_loader(cfg.dataloader.train, seed),
        evaluate=lambda model: _evaluate(cfg, model),
        output_dir=train.output_dir,
        weights=train.init_checkpoint,
        device=train.device,
        seed=seed,
        max_iter=train.max_iter,
        eval_period=train.eval_period,
        checkpointer=dict(train.checkpointer),
        train_sets=_datasets(cfg, "train"),
        test_sets=_datasets(cfg, "test"),
        nested=False,
        learning_rate=OmegaConf.select(cfg, KEYS["learning_rate"]),
        images_per_batch=OmegaConf.select(cfg, KEYS["images_per_batch"]),
        num_workers=OmegaConf.select(cfg, KEYS["num_workers"]),
        accumulate=train.get("accumulate", 1),
        skip_non_finite=train.get("skip_non_finite", 0),
        best_metric=train.get("best_metric", ""),
        log_period=train.log_period,
        vis_period=train.get("vis_period", 0),
        teacher=_teacher_evaluation(cfg),
        amp=_precision(train.amp),
        ddp=dict(train.ddp),
        expected=OmegaConf.to_container(train.get("expected_results", OmegaConf.create([]))),
    )


def _build_model(cfg: DictConfig) -> nn.Module:
    with written_as(LAZY):
        return instantiate(cfg.model).to(cfg.train.device)


def _teacher_evaluation(cfg: DictConfig) -> Optional[TeacherEvaluation]:
    images = cfg.train.get("evaluate_teacher", 0)
    if not (images and is_distilling(cfg)):
        return None
    if _target(cfg.model.teacher) is not build_teacher:
        raise ValueError(
            f"{KEYS['evaluate_teacher']} is {images}; it must be 0 where model.teacher is not made "
            "by skd.build_teacher: only of that the whole detector is known."
        )
    names = ("config_file", "weights", "opts", "random_weights")
    teacher = cfg.model.teacher
    build = {name: teacher[name] for name in names if name in teacher}
    return teacher_evaluation(
        images,
        _datasets(cfg, "test"),
        KEYS,
        build=partial(build_detector, further=list(teacher.get("projects", ())), **build),
        build_loader=lambda: _build_test_loader(cfg.dataloader.test),
        image_format=image_format(cfg) or "BGR",
    )


def _check_train(train: DictConfig) -> None:
    """Gradients are always zeroed before the forward, so the key for it has what it asks for."""
    if train.get("async_write_metrics", False):
        raise ValueError(
            "train.async_write_metrics is True; it must be False: a loss that is not finite stops "
            "the run in its own iteration, which needs the metrics then."
        )
    unknown = sorted(set(train) - TRAIN)
    if unknown:
        logger.warning(f"No effect here: {', '.join(f'train.{key}' for key in unknown)}.")


def _precision(amp: DictConfig) -> Optional[torch.dtype]:
    name = amp.get("precision", "fp16")
    if name not in PRECISIONS:
        raise ValueError(
            f"train.amp.precision is {name!r}; it must be one of {', '.join(PRECISIONS)}."
        )
    return PRECISIONS[name] if amp.enabled else None


def _datasets(cfg: DictConfig, split: str) -> Optional[List[str]]:
    names = OmegaConf.select(cfg, KEYS[f"{split}_sets"])
    if names is None:
        return None  # a loader of the user's own
    return [names] if isinstance(names, str) else list(names)


def _build_optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    cfg = copy.deepcopy(cfg)  # the run's own config stays without the model
    cfg.params.model = model
    return instantiate(cfg)


def _build_train_loader(cfg: DictConfig, seed: int):
    """Detectron2's loader becomes one that can go on where it was; any other stays as it is."""
    if _target(cfg) is build_detection_train_loader:
        cfg = {**cfg, "_target_": build_train_loader, "seed": seed}
    return instantiate(cfg)


def _build_test_loader(cfg: DictConfig):
    """Detectron2's loader, with errors that name the image."""
    if _target(cfg) is build_detection_test_loader and cfg.get("mapper") is not None:
        cfg = {**cfg, "mapper": NamedErrors(instantiate(cfg.mapper))}
    return instantiate(cfg)


def _target(cfg: DictConfig) -> Any:
    return locate(cfg._target_) if isinstance(cfg._target_, str) else cfg._target_


def _evaluate(cfg: DictConfig, model: nn.Module) -> Dict[str, Any]:
    if "evaluator" not in cfg.dataloader:
        return {}
    loader = _build_test_loader(cfg.dataloader.test)
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results
