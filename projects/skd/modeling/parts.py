"""What distils a student, made from a config: the distiller, the teacher and the settings."""

from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode
from torch import nn

from ..config.built import find_built
from ..config.methods import build_balance, build_distiller
from ..config.naming import YAML, written_as
from .heads import build_heads
from .teacher import FrozenTeacher


def distilling_parts(cfg: CfgNode, teacher: Optional[nn.Module] = None) -> Dict[str, Any]:
    """
    Args:
        cfg: with the keys of :func:`skd.add_skd_config`.
        teacher: a detector that has its weights, or a :class:`FrozenTeacher`, in place of the one
            that ``MODEL.TEACHER`` names.

    Returns:
        The arguments of :class:`DistillRCNN`, but for the student.
    """
    # the student's random numbers are its own
    with written_as(YAML), torch.random.fork_rng(devices=[]):
        distiller, heads = build_distiller(cfg), build_heads(cfg)
        built = teacher or find_built(cfg.MODEL.TEACHER.CONFIG_FILE)
        teacher = FrozenTeacher.of_built(cfg, built) if built else FrozenTeacher(cfg)
    return {
        "teacher": teacher,
        "distiller": distiller,
        "balance": build_balance(cfg),
        "input_format": cfg.INPUT.FORMAT,
        "features": cfg.MODEL.STUDENT.FEATURES,
        "feature_shapes": cfg.MODEL.STUDENT.FEATURE_SHAPES,
        "levels": cfg.MODEL.DISTILLER.LEVELS,
        "inherit": cfg.MODEL.STUDENT.INHERIT,
        "every": cfg.MODEL.DISTILLER.EVERY,
        "heads": heads,
        "unlabelled_weight": cfg.MODEL.DISTILLER.UNLABELLED_WEIGHT,
    }
