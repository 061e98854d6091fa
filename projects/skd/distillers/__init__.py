from .build import DISTILLER_REGISTRY, Distiller, build_distiller
from .structured import PRESETS, StructuredDistiller

__all__ = [
    "DISTILLER_REGISTRY",
    "Distiller",
    "PRESETS",
    "StructuredDistiller",
    "build_distiller",
]
