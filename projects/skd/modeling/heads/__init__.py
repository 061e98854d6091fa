"""
What a teacher's heads say, for a student's heads: one adapter for each kind of head.

    teacher_heads.py  all that a student learns from: checked, watched, compared
    base.py           what an adapter has to be, and the registry

    rpn.py            RPNHead: objectness and deltas at the student's anchors
    box.py            BoxHead: classes and boxes, on the student's proposals
    mask.py           MaskHead: masks, on the student's foreground boxes
    roi.py            what the heads of proposals share
    dense.py          DenseHead: classes and boxes of RetinaNet and FCOS
    cross.py          CrossHead: the student's features through the teacher's head
"""

from .base import HEAD_REGISTRY, HeadPair, Unfit
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
    "Unfit",
    "build_heads",
    "check_full_size",
]
