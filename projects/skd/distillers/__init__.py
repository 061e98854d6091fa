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
