from .at import AT
from .base import (
    DISTILLER_REGISTRY,
    CombinedDistiller,
    Distiller,
    LevelwiseDistiller,
    build_distiller,
)
from .cwd import CWD
from .defeat import DeFeat
from .fgd import FGD
from .fgfi import FGFI
from .fitnets import FitNets
from .mgd import MGD
from .ofd import OFD
from .pkd import PKD
from .reviewkd import ReviewKD
from .sp import SP
from .ssim import SSIM
from .structured.distiller import PRESETS, StructuredDistiller

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
    "LevelwiseDistiller",
    "MGD",
    "OFD",
    "PKD",
    "PRESETS",
    "ReviewKD",
    "SP",
    "SSIM",
    "StructuredDistiller",
    "build_distiller",
]
