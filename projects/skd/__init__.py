"""
Structured knowledge distillation for Detectron2: what a script of your own needs.

Each room (folder) lists its files in its ``__init__.py``; docs/code_map.md says which to read first
and who may import whom.
"""

from .runtime import interrupt  # first: what follows imports torch, which takes seconds

# isort: split
from .config import add_skd_config, distill, student_config, use_project
from .data import register_coco, register_shapes
from .distillers import DISTILLER_REGISTRY, Distiller, GradientBalance, StructuredDistiller
from .engine.foreign_trainer import distilling
from .modeling.heads import HEAD_REGISTRY, TeacherHeads
from .modeling.meta_arch import DistillRCNN
from .modeling.student_class import detach, student_of
from .modeling.teacher import FrozenTeacher, build_teacher
from .modeling.timm_backbone import TimmBackbone

interrupt.show_traceback()

__version__ = "0.1.0"

__all__ = [
    "DISTILLER_REGISTRY",
    "DistillRCNN",
    "Distiller",
    "FrozenTeacher",
    "GradientBalance",
    "HEAD_REGISTRY",
    "StructuredDistiller",
    "TeacherHeads",
    "TimmBackbone",
    "add_skd_config",
    "build_teacher",
    "detach",
    "distill",
    "distilling",
    "register_coco",
    "register_shapes",
    "student_config",
    "student_of",
    "use_project",
]
