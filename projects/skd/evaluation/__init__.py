"""
Evaluators, and what results are made of.

    build.py           the evaluator that belongs to a dataset
    any_class.py       how well objects are found, whatever class they are given
    generalization.py  datasets that a model never saw, with classes of their own
    robustness.py      image corruptions
"""

from .any_class import Quality, class_agnostic_quality, detect, unseen_classes
from .build import build_evaluator, check_evaluator, write_results
from .generalization import match_classes, register_as
from .robustness import CORRUPTIONS, CorruptedMapper, corrupt, mean_performance

__all__ = [
    "CORRUPTIONS",
    "CorruptedMapper",
    "Quality",
    "build_evaluator",
    "check_evaluator",
    "class_agnostic_quality",
    "corrupt",
    "detect",
    "match_classes",
    "mean_performance",
    "register_as",
    "unseen_classes",
    "write_results",
]
