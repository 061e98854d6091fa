"""The keys ``MODEL.DISTILLER.HEADS.*``."""

from dataclasses import dataclass
from typing import Sequence

from ..settings import Settings, number, texts


@dataclass(frozen=True)
class HeadsSettings(Settings):
    # Kinds of heads to learn from besides the features, of those in skd.HEAD_REGISTRY: "RPNHead",
    # "BoxHead", "MaskHead" of an R-CNN, "DenseHead", "CrossHead" of a RetinaNet or an FCOS. Empty:
    # none, and the teacher runs no heads.
    names: Sequence[str] = texts(())
    # Temperature of the softmax over the classes of a box.
    temperature: float = number(1.0, positive=True)
    # Weight of the background in the classification of boxes and anchors.
    background_weight: float = number(1.5)
    # What a term of a head weighs at most, whatever the balance asks for. A head that has learned
    # nothing yet hands down little of its gradient to the feature maps, where the balance looks,
    # and would itself get the whole of a very large weight.
    max_weight: float = number(3.0, positive=True)
    # Names of the classes, in their order; empty: of the first dataset that each was trained on.
    student_classes: Sequence[str] = texts(())
    teacher_classes: Sequence[str] = texts(())
