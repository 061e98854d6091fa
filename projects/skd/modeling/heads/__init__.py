"""What a teacher's heads say, for a student's heads: one adapter for each kind of head."""

from .base import HEAD_REGISTRY, HeadPair
from .dense import CrossHead, DenseHead
from .roi import BoxHead, MaskHead
from .rpn import RPNHead
from .teacher_heads import TeacherHeads, build_heads

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
]
