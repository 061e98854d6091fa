"""A run from either form of config: described once, then trained or evaluated."""

from .evaluate import beside_training, evaluate, prepare_evaluation
from .foreign_trainer import distilling
from .launch import launch
from .pictures import AttentionPictures
from .run import Run
from .trainer import SKDTrainer, describe, wrap_data_parallel

__all__ = [
    "AttentionPictures",
    "Run",
    "SKDTrainer",
    "beside_training",
    "describe",
    "distilling",
    "evaluate",
    "launch",
    "prepare_evaluation",
    "wrap_data_parallel",
]
