"""What a teacher's heads say, for a student's heads: one adapter for each kind of head."""

from .base import HEAD_REGISTRY, HeadPair
from .box import BoxHead
from .cross import CrossHead
from .dense import DenseHead
from .mask import MaskHead
from .rpn import RPNHead
from .teacher_heads import TeacherHeads, build_heads, check_full_size

__all__ = [
    "BoxHead",
    "CrossHead",
    "DenseHead",
    "HEAD_REGISTRY",
    "HeadPair",
    "MaskHead",
    "RPNHead",
    "TeacherHeads",
    "build_heads",
    "check_full_size",
]
