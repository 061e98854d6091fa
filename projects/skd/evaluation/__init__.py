from .any_class import Quality, find, quality, unseen_classes
from .build import build_evaluator, write_results
from .generalization import match_classes, register_as
from .robustness import CORRUPTIONS, CorruptedMapper, corrupt, mean_performance

__all__ = [
    "CORRUPTIONS",
    "CorruptedMapper",
    "Quality",
    "build_evaluator",
    "corrupt",
    "find",
    "match_classes",
    "mean_performance",
    "quality",
    "register_as",
    "unseen_classes",
    "write_results",
]
