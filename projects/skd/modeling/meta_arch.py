"""
The student, the frozen teacher and the distiller, as one Detectron2 model.

How a student becomes one is in :mod:`attach`, of which class it then is and how it is copied in
:mod:`student_class`, and what it does in training in :mod:`distill_step`.
"""

from typing import Any, Callable, Dict, Optional, Tuple, Type

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..config import is_distilling_class, student_config
from ..config.naming import YAML, written_as
from ..distillers import Distiller
from .attach import attach, check_every
from .distill_step import run_step
from .features import check_teacher_maps
from .load import spare_distiller
from .parts import distilling_parts
from .state import DistillState
from .student_class import reduce_by_state
from .teacher import FrozenTeacher


@META_ARCH_REGISTRY.register()
class DistillRCNN(nn.Module):
    """
    Trains a student detector with its own losses plus those of a distiller.

    The model *is* the student: ``DistillRCNN(student=student, ...)`` returns the very object it is
    given, whose class is from then on made of this one and its own. So everything that can be
    asked of the student can be asked of the model, and ``isinstance`` says yes to both classes. In
    eval mode it is the student. Only the distiller comes on top, as the child ``distiller``. The
    teacher is no child, so neither checkpoints, optimizers nor data-parallel wrappers know of it.

    Of the student's names it takes ``distiller``, ``teacher`` and ``pop_metrics``, and those that
    start with ``_skd``.

    A subclass may override methods and, for what it needs besides, ``__new__``: it calls that of
    its base and sets attributes on what this returns. It has no ``__init__``, because the student
    is made when it would be called.

    Attributes:
        distiller: the method, with its layers.
        teacher: a :class:`FrozenTeacher`, or what takes its place.
    """

    distiller: Distiller
    teacher: FrozenTeacher
    _skd: DistillState
    _skd_base: Type["DistillRCNN"]
    _skd_student: Type[nn.Module]
    _skd_distils = True  # see config.is_distilling_class

    def __new__(cls, cfg: Optional[CfgNode] = None, **kwargs: Any) -> "DistillRCNN":
        """Build from a config, or with the arguments of :func:`attach`, which take precedence."""
        cls = getattr(cls, "_skd_base", cls)  # of a model's own class, as in type(model)(cfg)
        if cfg is None:
            return attach(cls, **kwargs)
        if not isinstance(cfg, CfgNode):
            raise TypeError(
                f"{cls.__name__} takes a YAML config or arguments by their names, as in "
                f"{cls.__name__}(student=..., teacher=..., distiller=...), not a "
                f"{type(cfg).__name__}."
            )
        with written_as(YAML):
            return attach(cls, **{**cls.from_config(cfg), **kwargs})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: Python calls it on what ``__new__`` returns, which is complete."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            raise TypeError(
                f"{cls.__name__}, a subclass of DistillRCNN, has an __init__(), which would get a "
                "student that is made already. Override __new__() instead: call that of the base, "
                "set what you need on the model it returns, and return it."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        check_every(cfg.MODEL.DISTILLER.EVERY)
        name = cfg.MODEL.STUDENT.META_ARCHITECTURE
        if name not in META_ARCH_REGISTRY or is_distilling_class(name):
            known = sorted(k for k, _ in META_ARCH_REGISTRY if not is_distilling_class(k))
            raise ValueError(
                f"MODEL.STUDENT.META_ARCHITECTURE is '{name}'; it must be one of "
                f"{', '.join(known)}."
            )
        parts = distilling_parts(cfg)
        student = META_ARCH_REGISTRY.get(name)(student_config(cfg))
        return {"student": student, **parts}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """
        The student's forward, with all its arguments. In training, the distiller's losses come on
        top, named ``loss_distill_*``. What else there is to see is left for :meth:`pop_metrics`.
        Within ``torch.no_grad()`` nothing can be distilled: it is the student's forward also in
        training mode, as precise batch norm and losses on a validation set call it.

        Raises:
            TypeError, ValueError: what the student or the teacher did cannot be distilled; says
                why.
        """
        if self.training and not self._skd.running:
            with written_as(self._skd.form):
                return run_step(self, super().forward, args, kwargs)
        return super().forward(*args, **kwargs)

    def pop_metrics(self) -> Dict[str, torch.Tensor]:
        """
        Scalars of the last step, on the device: ``distill/<term>_<level>``, each term's value at
        each level; ``detector_loss``, the sum of the student's own losses;
        ``distill/share_<term>`` and ``cosine_``, with a balance also ``norm_`` and ``weight_``; and
        ``distill/cka_<level>``, how alike the student's and the teacher's maps are. The cosines and
        these are of the last step that measured. To copy all costs a wait for the device, so a
        trainer that calls this copies them with the losses after the backward; under any other
        trainer every 20th step's go to the event storage from here.
        """
        metrics, self.distiller.metrics = self.distiller.metrics or {}, {}
        return metrics

    def __setattr__(self, name: str, value: Any) -> None:
        """A module that is assigned becomes a child, but for the teacher, which is to be none."""
        if name != "teacher":
            super().__setattr__(name, value)
            return
        check_teacher_maps(value.output_shape(), self._skd.pairs)
        if self._skd.heads is not None and "teacher" in self.__dict__:
            # another one, whose classes may be others, or in another order
            with written_as(self._skd.form):
                self._skd.heads = self._skd.heads.fitted(self, value)
        self.__dict__[name] = value

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> "DistillRCNN":
        """``.to()`` and its like take the teacher along."""
        self.__dict__["teacher"] = self.teacher.follow(fn)
        return super()._apply(fn, *args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> Tuple[Any, ...]:
        return reduce_by_state(self, super().__reduce_ex__(max(int(protocol), 2)))


# Where this class is known, models of it may be: also one that was unpickled and never attached.
spare_distiller()
