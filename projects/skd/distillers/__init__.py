"""
Losses on pairs of feature maps. They know tensors and shapes, no detector.

    base.py         what a method has to be: Distiller, LevelwiseDistiller, StagewiseDistiller
    settings.py     how a method declares its settings: config keys, arguments and checks in one
    registry.py     the methods by name
    balance.py      weighs the terms by their gradients
    gradient_norms.py   measures these
    shares.py       shows them where no balance weighs the terms
    similarity.py   how alike the student's and the teacher's maps are
    schedule.py     when there is a teacher, and how strongly it pulls
    idle.py         settings that have no effect with it, or without it
    combined.py     several methods at once
    words.py        what the user calls a setting, for errors
    attention.py    attention of maps, masks made of it, norms
    boxes.py        objects' boxes and anchors on the grid of a map

    structured/     SKD, the method of this project
    at.py           a file each for the other methods, named as in the registry:
    cwd.py defeat.py fgd.py fgfi.py fitnets.py mgd.py ofd.py pkd.py reviewkd.py sp.py ssim.py

    heads/          losses on what heads predict
"""

from .at import AT
from .balance import GradientBalance
from .base import Distiller, LevelwiseDistiller
from .combined import CombinedDistiller
from .cwd import CWD
from .defeat import DeFeat
from .fgd import FGD
from .fgfi import FGFI
from .fitnets import FitNets
from .mgd import MGD
from .ofd import OFD
from .pkd import PKD
from .registry import DISTILLER_REGISTRY
from .reviewkd import ReviewKD
from .settings import Settings
from .sp import SP
from .ssim import SSIM
from .structured import PRESETS, StructuredDistiller

__all__ = [
    "AT",
    "CWD",
    "CombinedDistiller",
    "DISTILLER_REGISTRY",
    "DeFeat",
    "Distiller",
    "FGD",
    "FGFI",
    "FitNets",
    "GradientBalance",
    "LevelwiseDistiller",
    "MGD",
    "OFD",
    "PKD",
    "PRESETS",
    "ReviewKD",
    "SP",
    "SSIM",
    "Settings",
    "StructuredDistiller",
]
