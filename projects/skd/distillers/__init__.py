from .attention_transfer import AT
from .build import (
    DISTILLER_REGISTRY,
    CombinedDistiller,
    Distiller,
    LevelwiseDistiller,
    build_distiller,
)
from .channel_wise import CWD
from .defeat import DeFeat
from .fgd import FGD
from .fine_grained import FGFI
from .fitnets import FitNets
from .mgd import MGD
from .overhaul import OFD
from .pkd import PKD
from .review import ReviewKD
from .similarity_preserving import SP
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
