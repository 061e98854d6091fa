"""Let a student distil: what it needs, what is checked, what is made."""

import inspect
import logging
from math import inf
from typing import Any, Dict, List, Optional, Sequence, Type, Union

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from ..config.naming import called, present_form
from ..distillers import Distiller, GradientBalance
from ..distillers.settings import is_number, is_whole
from .features import LevelPair, pair_levels
from .heads import TeacherHeads
from .inherit import inherit as inherit_from
from .partial_forward import check_module, color_order, given_shapes, output_shapes
from .state import DistillState
from .student_class import PARTS, STATE, distils, set_parts
from .teacher import FrozenTeacher

logger = logging.getLogger(__name__)
AUTO = "auto"
FORMAT_HINT = (
    "the color order of the training images: an argument of DistillRCNN, in a LazyConfig "
    "model.input_format=RGB, or an attribute of the student."
)
C5_STRIDE = 32  # of the last of a backbone's maps; an FPN adds P6 and P7 by strided convolutions


def attach(
    base: Type[nn.Module],
    *,
    student: nn.Module,
    teacher: FrozenTeacher,
    distiller: Distiller,
    balance: Union[GradientBalance, str, None] = AUTO,
    input_format: Optional[str] = None,
    features: str = "backbone",
    feature_shapes: Sequence[Sequence[Any]] = (),
    levels: Sequence[str] = (),
    inherit: bool = False,
    every: int = 1,
    unlabelled_weight: float = 1.0,
    heads: Optional[TeacherHeads] = None,
) -> nn.Module:
    """
    Let a student distil, in place; :func:`detach` undoes it. ``DistillRCNN(student=..., ...)``.

    Args:
        base: DistillRCNN, or a subclass of it.
        student: any Detectron2 model that returns its losses in training.
        teacher: see :class:`FrozenTeacher`. May serve several students.
        distiller: a method; its layers are made here, for this student.
        balance: weighs the distiller's terms. "auto": by their gradients, with the defaults of
            :class:`GradientBalance`, unless the distiller names weights that were published with it
            (``StructuredDistiller``'s ``preset``). None leaves their weights as they are.
        input_format: color order of the images given to the model, "BGR" or "RGB", or a name for
            images of other channels; by default ``student.input_format``.
        features: the student's module whose feature maps are distilled.
        feature_shapes: (name, stride, channels) of these maps, if the module does not say it and it
            is not to be measured.
        levels: names of these maps; empty for all that have a partner in the teacher, and of a
            :class:`DenseDetector` whose terms are balanced those of stride 32 at most.
        inherit: copy the teacher's FPN and heads into the student where they agree.
        every: distil in the iterations that it divides only, with so many times the weight; see
            ``MODEL.DISTILLER.EVERY``.
        unlabelled_weight: of the terms on images without labels, see
            ``MODEL.DISTILLER.UNLABELLED_WEIGHT``.
        heads: heads of the teacher to learn from besides; the teacher is to have kept them.

    Returns:
        The student.

    Raises:
        TypeError: a student, teacher or distiller of another kind.
        ValueError: an unknown module or level, no common stride, nothing to inherit, an ``every``
            below 1, a balance of another kind, a distiller or a balance that has a student already,
            or a student that has an attribute of a name that is needed.
    """
    _check_kinds(student, teacher, distiller)
    check_every(every)
    _check_weight(unlabelled_weight)
    _check_student(student, base)
    balance = _as_balance(balance)
    input_format = color_order(student, input_format, called("INPUT.FORMAT"), FORMAT_HINT)
    student_shapes = _shapes(student, features, feature_shapes)
    pairs = _pair(student_shapes, teacher, levels)
    balanced = balance is not None and distiller.wants_balance(balance.settings.enabled)
    dense = balanced and isinstance(student, DenseDetector)
    if dense and not levels:
        pairs = _of_the_backbone(pairs)
    measured = pairs
    if heads is not None:
        heads = heads.fitted(student, teacher, _shapes_of_heads(student, features, student_shapes))
        if levels:  # of the features: heads are measured where they are without that choice
            whole = pair_levels(student_shapes, teacher.output_shape())
            measured = {**(_up_to_the_backbones_end(whole) if dense else whole), **pairs}
    if inherit:
        inherit_from(student, teacher.components())
    # the student's random numbers (data order, sampling) are those of its training without
    with torch.random.fork_rng(devices=[]):
        shapes = {name: (p.student, p.teacher) for name, p in pairs.items()}
        distiller.bind_once(shapes, balance, min(s.stride for s in student_shapes.values()))
    state = DistillState(
        input_format=input_format,
        features=features,
        every=every,
        pairs=pairs,
        measured_pairs=measured,
        form=present_form(),
        unlabelled_weight=unlabelled_weight,
        heads=heads,
    )
    if balance is not None:
        balance.dense = dense  # not before: until here it may be another model's
        state.measured_every = balance.settings.period
    return set_parts(student, base, {"distiller": distiller, "teacher": teacher, STATE: state})


def _shapes(
    student: nn.Module, features: str, given: Sequence[Sequence[Any]]
) -> Dict[str, ShapeSpec]:
    """Shapes of the student's maps: as given, or else as the module says, or measured."""
    key = called("MODEL.STUDENT.FEATURES")
    shapes = given_shapes(given, called("MODEL.STUDENT.FEATURE_SHAPES"))
    if not shapes:
        return output_shapes(student, features, key)
    check_module(student, features, key)
    return shapes


def _shapes_of_heads(
    student: nn.Module, features: str, shapes: Dict[str, ShapeSpec]
) -> Dict[str, ShapeSpec]:
    """Those of the maps that the heads take, whatever module's are distilled, and have shapes."""
    if features == "backbone" or not hasattr(student, "backbone"):
        return shapes
    return output_shapes(student, "backbone", "The student's backbone")


def _pair(
    student: Dict[str, ShapeSpec], teacher: FrozenTeacher, levels: Sequence[str]
) -> Dict[str, LevelPair]:
    """Pairs of maps; the log says which of the student's have no partner."""
    try:
        pairs = pair_levels(student, teacher.output_shape(), levels)
    except ValueError as error:
        if not getattr(teacher, "half_size", False):
            raise
        key = called("MODEL.TEACHER.HALF_SIZE")
        raise ValueError(f"{error}\n{key} is True, which doubles the teacher's strides.") from None
    alone = [f"'{n}' (stride {s.stride})" for n, s in student.items() if n not in pairs]
    if alone and not levels:
        logger.info(
            f"Not distilled: the student's {', '.join(alone)}, as no map of the teacher has the "
            "stride."
        )
    return pairs


def _of_the_backbone(pairs: Dict[str, LevelPair]) -> Dict[str, LevelPair]:
    """Those up to the stride at which backbones end, if there are any; the log says which not."""
    kept = _up_to_the_backbones_end(pairs)
    left = [f"'{n}' (stride {p.student.stride})" for n, p in pairs.items() if n not in kept]
    if left:
        logger.info(
            f"Not distilled: {', '.join(left)}, whose few positions have gradients that outweigh "
            f"those of the finer maps. {called('MODEL.DISTILLER.LEVELS')} names the maps that are."
        )
    return kept


def _up_to_the_backbones_end(pairs: Dict[str, LevelPair]) -> Dict[str, LevelPair]:
    kept = {name: pair for name, pair in pairs.items() if pair.student.stride <= C5_STRIDE}
    return kept or pairs


def _check_kinds(student: Any, teacher: Any, distiller: Any) -> None:
    if not isinstance(student, nn.Module):
        raise TypeError(
            f"The student is a {type(student).__name__}; it must be a model. Of a config, "
            "skd.distill(cfg, teacher) and build_model(cfg) make one that distils."
        )
    if not (hasattr(teacher, "output_shape") and hasattr(teacher, "start")):
        raise TypeError(
            f"The teacher is a {type(teacher).__name__}; it must be a FrozenTeacher: "
            "skd.FrozenTeacher(model=..., weights=None) of a detector that has its weights, or "
            "skd.build_teacher(config_file, weights=...)."
        )
    if not isinstance(distiller, Distiller):
        raise TypeError(
            f"The distiller is {distiller!r:.80}; it must be an object of one of the methods, like "
            "skd.StructuredDistiller()."
        )
    frozen = {id(p) for p in teacher.parameters()} if isinstance(teacher, nn.Module) else set()
    if any(id(p) in frozen for p in student.parameters()):
        raise ValueError(
            "Student and teacher share parameters, and a teacher's are frozen: give the teacher a "
            "model of its own, copy.deepcopy(model) say."
        )


def check_every(every: Any) -> None:
    """
    Raises:
        ValueError: ``MODEL.DISTILLER.EVERY`` is no whole number above 0.
    """
    if not is_whole(every, 1):
        raise ValueError(
            f"{called('MODEL.DISTILLER.EVERY')} is {every!r}; it must be a whole number above 0."
        )


def _check_weight(weight: Any) -> None:
    if not (is_number(weight) and 0 <= weight < inf):
        raise ValueError(
            f"{called('MODEL.DISTILLER.UNLABELLED_WEIGHT')} is {weight!r}; it must be a number, 0 "
            "or above."
        )


def _as_balance(balance: Any) -> Optional[GradientBalance]:
    if balance == AUTO:
        return GradientBalance(enabled=None)
    if balance is None or isinstance(balance, GradientBalance):
        return balance
    raise ValueError(
        f"{called('MODEL.DISTILLER.BALANCE')} is {balance!r}; it must be a GradientBalance, "
        f"{AUTO!r} or None."
    )


def _check_student(student: nn.Module, base: Type[nn.Module]) -> None:
    if distils(student):
        raise ValueError("The student is a DistillRCNN already: it has a teacher.")
    for name in _reserved(base):
        if _has(student, name):
            raise ValueError(
                f"The student, a {type(student).__name__}, has an attribute '{name}', which "
                f"{base.__name__} needs for its own. Rename it in the student's class."
            )
    if "forward" in vars(student):
        raise ValueError(
            f"The student, a {type(student).__name__}, has a forward() on the object, not in its "
            "class (as torch.compile(model) makes it). Compile or change its modules instead, or "
            "DistillRCNN afterwards."
        )


def _reserved(base: Type[nn.Module]) -> List[str]:
    """Attributes that distilling adds, and what the class and its subclasses define anew."""
    classes = base.__mro__[: base.__mro__.index(nn.Module)]
    defined = [name for c in classes for name in vars(c) if not hasattr(nn.Module, name)]
    # from_config remains the student's, see class_of; Python's own names are no attributes
    return [*PARTS] + [n for n in defined if n != "from_config" and not n.startswith("__")]


def _has(student: nn.Module, name: str) -> bool:
    """Whether an attribute is there, statically: a property may fail, ``__getattr__`` invent it."""
    held = (student._modules, student._parameters, student._buffers)
    missing = object()
    return any(name in d for d in held) or (
        inspect.getattr_static(student, name, missing) is not missing
    )
