"""
The same method in MMRazor (its FBKD), as a peer to measure against. Optional:

    pip install --no-deps mmrazor mmengine mmcv-lite addict yapf platformdirs

The loss needs no more than that; all of MMRazor would need older releases of these.
"""

import functools
import importlib.util
import sys
import types
from importlib import import_module
from typing import Dict, Optional

import torch
from torch import nn

from ...distillers import StructuredDistiller
from ...distillers.structured.level import StructuredLevel

FOLDERS = ("", ".models", ".models.losses", ".models.architectures",
           ".models.architectures.connectors")  # fmt: skip
# P6 is left out there, and keys are pooled twice: by 2, and by 8, 4, 2, 2
LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
KEY_STRIDE = {4: 16, 8: 8, 16: 4, 32: 4}


@functools.lru_cache()
def missing() -> Optional[str]:
    """The first package that is not installed."""
    names = ("mmrazor", "mmengine", "mmcv", "addict", "yapf", "platformdirs")
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def _module(name: str) -> types.ModuleType:
    """
    A module of MMRazor by itself. The packages above it would import everything else of it, so
    they stay empty.
    """
    if "mmrazor" not in sys.modules:
        (root,) = importlib.util.find_spec("mmrazor").submodule_search_locations
        for folder in FOLDERS:
            package = types.ModuleType("mmrazor" + folder)
            package.__path__ = [root + folder.replace(".", "/")]
            sys.modules[package.__name__] = package
    return import_module("mmrazor." + name)


class Peer(nn.Module):
    """MMRazor's loss at all levels, with the numbers of a distiller's layers."""

    def __init__(self, distiller: StructuredDistiller):
        super().__init__()
        self.loss = _module("models.losses.fbkd_loss").FBKDLoss()
        self.levels = nn.ModuleDict(
            {name: nn.ModuleList(connectors(level)) for name, level in distiller.levels.items()}
        )

    def forward(self, student: Dict[str, torch.Tensor], teacher: Dict[str, torch.Tensor]):
        return sum(
            self.loss(of_student(student[name]), of_teacher(teacher[name]))
            for name, (of_student, of_teacher) in self.levels.items()
        )


def connectors(level: StructuredLevel):
    """MMRazor's connectors of student and teacher at one level."""
    module = _module("models.architectures.connectors.fbkd_connector")
    block = level.student_non_local
    channels, width = block.theta.in_channels, block.theta.out_channels
    settings = {
        "reduction": channels // width,
        "sub_sample": True,
        "maxpool_stride": block.key_stride // 2,
    }
    student = module.FBKDStudentConnector(channels, **settings)
    teacher = module.FBKDTeacherConnector(channels, **settings)
    student.adaptation_layers = level.feature_adapter
    student.channel_wise_adaptation = level.channel_adapter
    student.spatial_wise_adaptation = level.spatial_adapter
    student.non_local_adaptation = level.non_local_adapter
    _share(level.student_non_local, student.student_non_local)
    _share(level.teacher_non_local, teacher.teacher_non_local)
    return student, teacher


def _share(block: nn.Module, peer: nn.Module) -> None:
    """Their block gets the layers of this project's: one set of parameters and gradients."""
    peer.theta.conv, peer.conv_out.conv = block.theta, block.out
    peer.g[0][0].conv, peer.phi[0][0].conv = block.g, block.phi
    peer.conv_out.bn = block.norm
