from .build import build_evaluator, write_results
from .generalization import match_classes, register_as
from .robustness import CORRUPTIONS, CorruptedMapper, corrupt, mean_performance

__all__ = [
    "CORRUPTIONS",
    "CorruptedMapper",
    "build_evaluator",
    "corrupt",
    "match_classes",
    "mean_performance",
    "register_as",
    "write_results",
]
