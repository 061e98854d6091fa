"""
The class of a student that distils, made of :class:`DistillRCNN` and the student's own; how such
models are copied and pickled; and the way back.
"""

import copy
import functools
import inspect
from typing import Any, Callable, Dict, Optional, Tuple, Type

from torch import nn

from ..distillers import GradientBalance

STATE = "_skd"  # the attribute with the model's DistillState
# What distilling gives a student, besides the methods of DistillRCNN. In this order: the teacher is
# checked against the state.
PARTS = (STATE, "distiller", "teacher")


@functools.lru_cache(maxsize=None)
def class_of(base: Type[nn.Module], student: Type[nn.Module]) -> Type[nn.Module]:
    """
    One class for each class of students, so that ``type(a) is type(b)`` for two of a kind.

    Args:
        base: DistillRCNN, or a subclass.
        student: any detector's class.
    """
    own: Dict[str, Any] = {"_skd_base": base, "_skd_student": student}
    from_config = inspect.getattr_static(student, "from_config", None)
    if from_config is not None:
        own["from_config"] = from_config  # the base's is for the base's config
    if hasattr(student, "__deepcopy__"):
        own["__deepcopy__"] = _deepcopy_by_student
    if _pickles_itself(student):
        own["__reduce_ex__"] = _reduce_by_student
    return type(f"{base.__name__}[{student.__name__}]", (base, student), own)


def distils(model: nn.Module) -> bool:
    """Whether a model is of such a class."""
    return hasattr(type(model), "_skd_student")


def distilling_in(model: nn.Module) -> Optional[nn.Module]:
    """The model that distils, whatever wraps it (data-parallel wrappers, torch.compile)."""
    return next((m for m in model.modules() if distils(m)), None)


def balance_of(model: nn.Module) -> Optional[GradientBalance]:
    """What weighs the terms of :func:`distilling_in`; None where nothing does."""
    found = distilling_in(model)
    return None if found is None else found.distiller.balance


def set_parts(student: nn.Module, base: Type[nn.Module], parts: Dict[str, Any]) -> nn.Module:
    """
    Make a student distil.

    Args:
        student: changed in place.
        base: see :func:`class_of`.
        parts: by the names in ``PARTS``.

    Returns:
        The student.
    """
    student.__class__ = class_of(base, type(student))
    for name in PARTS:
        setattr(student, name, parts[name])
    return student


def detach(model: nn.Module) -> nn.Module:
    """
    End distillation, in place: the model is again of the student's own class, without distiller
    and teacher. An optimizer that was made before still has the distiller's parameters, which then
    get no gradient any more.

    Returns:
        The model. One that does not distil is left as it is.
    """
    if distils(model):
        model.__class__ = type(model)._skd_student
        model._modules.pop("distiller", None)
        for name in ("teacher", STATE):
            model.__dict__.pop(name, None)
    return model


def student_of(model: nn.Module) -> nn.Module:
    """
    The student of a distilling model as an object of its own class, beside the model: for saving,
    exporting and evaluating. Its children, parameters and buffers are the model's, so training
    goes on in both. What is replaced or added on one of them from then on is not on the other:
    :func:`detach` gives the model itself. Any other model is its own student.
    """
    if not distils(model):
        return model
    student = object.__new__(type(model))
    student.__dict__.update(model.__dict__, _modules=dict(model._modules))
    return detach(student)


def reduce_by_state(model: nn.Module, reduced: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """
    ``__reduce_ex__``'s result, naming the student's class, because the model's is made at run time.

    Args:
        reduced: what object's, of protocol 2 or above, returns: a function, its arguments, the
            state, ...
    """
    return (_empty, (model._skd_base, model._skd_student), *reduced[2:])


def _empty(base: Type[nn.Module], student: Type[nn.Module]) -> nn.Module:
    """An empty model for a copy's or pickle's state; DistillRCNN's ``__new__`` asks for parts."""
    return object.__new__(class_of(base, student))


# A student that copies or pickles itself makes a new one, knowing nothing of a distiller. So it is
# asked for one of its own class, and the parts come on top.


def _pickles_itself(student: Type[nn.Module]) -> bool:
    return any(getattr(student, n) is not getattr(nn.Module, n) for n in _REDUCE)


_REDUCE = ("__reduce__", "__reduce_ex__")


def _parts(model: nn.Module) -> Dict[str, Any]:
    return {name: getattr(model, name) for name in PARTS}


def _reduce_by_student(model: nn.Module, protocol: int) -> Tuple[Callable, Tuple[Any, ...]]:
    return set_parts, (student_of(model), model._skd_base, _parts(model))


def _deepcopy_by_student(model: nn.Module, memo: Dict[int, Any]) -> nn.Module:
    student, parts = (copy.deepcopy(x, memo) for x in (student_of(model), _parts(model)))
    return set_parts(student, model._skd_base, parts)
