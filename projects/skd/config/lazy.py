"""A LazyConfig: read it, make it distil, take the student out of it. The verbs are YAML's."""

import copy
from typing import Sequence

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

# SOLVER_KEYS of a YAML config, below ``train``
TRAIN_KEYS = ("accumulate", "skip_non_finite", "expected_results")


def read(path: str) -> DictConfig:
    """A LazyConfig, from its .py file or from the .yaml that a run has saved."""
    return LazyConfig.load(path)


def override(cfg: DictConfig, options: Sequence[str]) -> DictConfig:
    """A copy of the config with ``key=value ...`` of the command line."""
    return LazyConfig.apply_overrides(cfg, list(options))


def output_dir(cfg: DictConfig) -> str:
    """The folder of the run."""
    return cfg.train.output_dir


def is_distilling(cfg: DictConfig) -> bool:
    """Whether a LazyConfig describes a student with a teacher."""
    return "student" in cfg.model and "distiller" in cfg.model


def check_teacher(cfg: DictConfig) -> None:
    """
    Raises:
        ValueError: the config distils and names no teacher.
    """
    if is_distilling(cfg) and not cfg.model.get("teacher"):
        raise ValueError(
            "model distils (it has a student and a distiller), and model.teacher is missing: give "
            "it, or --teacher, or put the student in place of model to train it without one."
        )


def distil(cfg: DictConfig, teacher: str, weights: str = "") -> None:
    """
    Turn a plain LazyConfig into one that distils, in place: what ``--teacher`` does.

    Args:
        cfg: with ``model``, the student.
        teacher, weights: see ``MODEL.TEACHER.CONFIG_FILE`` and ``MODEL.TEACHER.WEIGHTS``.
    """
    student = cfg.model.student if is_distilling(cfg) else cfg.model
    max_iter = "${train.max_iter}" if "train" in cfg else 0
    # names, because a config knows no model; those of the package outlive a move of the file
    cfg.model = L("skd.DistillRCNN")(
        student=student,
        teacher=L("skd.build_teacher")(config_file=teacher, weights=weights),
        distiller=L("skd.StructuredDistiller")(reduction="mean"),
        balance=L("skd.GradientBalance")(max_iter=max_iter),
        input_format=OmegaConf.select(cfg, "dataloader.train.mapper.image_format"),
    )


def student_of(cfg: DictConfig, solver: bool = False) -> DictConfig:
    """
    A copy for stock Detectron2: its model is the student, without any key of this project.

    Args:
        cfg: distilling or not.
        solver: keep the keys of ``train`` that only this project reads, for training.
    """
    cfg = copy.deepcopy(cfg)
    if is_distilling(cfg):
        cfg.model = cfg.model.student
    for key in () if solver else TRAIN_KEYS:
        cfg.get("train", {}).pop(key, None)
    return cfg


def save_trained_student(cfg: DictConfig, weights: str, path: str) -> None:
    """Write the config with which stock Detectron2 uses the student that a run has trained."""
    cfg = student_of(cfg)
    cfg.train.init_checkpoint = weights
    LazyConfig.save(cfg, path)
