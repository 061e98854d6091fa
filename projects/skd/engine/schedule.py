"""The schedule of the learning rate that a YAML config names."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

# as Detectron2's DeepLab and Panoptic-DeepLab have it, whose package declares its keys
POLY = "WarmupPolyLR"


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """
    Detectron2's, or that of its project DeepLab.

    Raises:
        ValueError: a schedule of another project, which its own Trainer builds.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name == POLY and "POLY_LR_POWER" in cfg.SOLVER:
        from detectron2.projects import deeplab

        return deeplab.build_lr_scheduler(cfg, optimizer)
    try:
        return build_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        if "Unknown LR scheduler" not in str(error):
            raise
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME is '{name}', which is not Detectron2's. Name one of its "
            "own, WarmupMultiStepLR or WarmupCosineLR say, or distil with the Trainer that builds "
            "it: Trainer = skd.distilling(Trainer, teacher=...). See docs/your_project.md."
        ) from None
