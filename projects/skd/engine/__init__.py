"""
A run from either form of config: described once, then trained or evaluated.

    run.py              Run: settings, and what makes its parts; check, before anything is built
    yaml_run.py         a Run from a YAML config
    lazy_run.py         a Run from a LazyConfig
    trainer.py          SKDTrainer, which trains a Run; describe, which makes one of a config
    foreign_trainer.py  another project's Trainer, whose model distils
    evaluate.py         --eval-only
    launch.py           processes: Detectron2's launcher, or torchrun's

    weights.py          the weights a run starts from
    schedule.py         the learning rate's schedule
    unlabelled.py       images without labels, put into the loader

    hooks:
    average.py          exponential moving average of the weights
    best.py             the best checkpoint, and an early end
    missed.py           the evaluation that an interruption came before
    precise_bn.py       precise statistics of batch norms
    pictures.py         attention in TensorBoard
    readout.py          what distillation does, in the log
    teacher_quality.py  whether the teacher is better than the student
    tracking.py         Weights & Biases, MLflow
"""

from .evaluate import beside_training, evaluate, prepare_evaluation
from .foreign_trainer import distilling
from .launch import launch
from .pictures import AttentionPictures
from .readout import DistillationLog
from .run import Run
from .trainer import SKDTrainer, describe, wrap_data_parallel

__all__ = [
    "AttentionPictures",
    "DistillationLog",
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
