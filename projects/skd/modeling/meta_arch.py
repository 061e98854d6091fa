"""The student, the frozen teacher and the distiller, as one Detectron2 model."""

import copy
import functools
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ..config import student_config
from ..config.naming import YAML, called, written_as
from ..distillers import Distiller, GradientBalance, build_balance, build_distiller
from .features import (
    FeatureTap,
    Maps,
    Size,
    Tapped,
    check_maps,
    crop,
    get_feature_module,
    pair_levels,
)
from .inherit import inherit as inherit_from
from .load import spare_distiller
from .teacher import FrozenTeacher

Losses = Dict[str, torch.Tensor]
Terms = Dict[str, Losses]  # by term, then by level

STUDENT_FEATURES = "MODEL.STUDENT.FEATURES"
# Iterations between those whose metrics are written by the model itself; see pop_metrics.
METRICS_PERIOD = 20


class _Settings(NamedTuple):
    """What a distilling model knows besides its parts; see :meth:`DistillRCNN.attach`."""

    input_format: str
    features: str
    every: int


class AlignedMaps(NamedTuple):
    """
    What a distiller compares in one step; see :meth:`DistillRCNN.watch_maps`.

    image: the batch's first, (C, H, W), as the model gets it; image_format: its color order;
    student, teacher: maps (N, C, H, W) by the student's level names, of equal sizes (channels may
    differ); strides: of these levels.
    """

    image: torch.Tensor
    image_format: str
    student: Maps
    teacher: Maps
    strides: Dict[str, int]


@META_ARCH_REGISTRY.register()
class DistillRCNN(nn.Module):
    """
    Trains a student detector with its own losses plus those of a distiller.

    The model *is* the student: ``DistillRCNN(student=student, ...)`` returns the very object it is
    given, whose class is from then on made of this one and its own. So everything that can be
    asked of the student can be asked of the model, and ``isinstance`` says yes to both classes. In
    eval mode it is the student. Only the distiller comes on top, as the child ``distiller``. The
    teacher is no child, so neither checkpoints, optimizers nor data-parallel wrappers know of it.

    Attributes:
        distiller: the method, with its layers.
        teacher: a :class:`FrozenTeacher`, or what takes its place.
        pairs: the pairs of maps that are distilled, by the student's name.
    """

    _base: Type["DistillRCNN"]
    _student_class: Type[nn.Module]
    _watcher: Optional[Callable[[AlignedMaps], None]] = None

    def __new__(cls, cfg: Optional[CfgNode] = None, **kwargs: Any) -> "DistillRCNN":
        """
        From a config, or with the arguments of :meth:`attach`; such arguments take precedence.
        """
        if cfg is None:
            return cls.attach(**kwargs)
        with written_as(YAML):
            return cls.attach(**{**cls.from_config(cfg), **kwargs})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: Python calls it on what ``__new__`` returns, which is complete."""

    @classmethod
    def attach(
        cls,
        *,
        student: nn.Module,
        teacher: FrozenTeacher,
        distiller: Distiller,
        balance: Optional[GradientBalance] = None,
        input_format: Optional[str] = None,
        features: str = "backbone",
        levels: Sequence[str] = (),
        inherit: bool = False,
        every: int = 1,
    ) -> "DistillRCNN":
        """
        Let a student distil, in place; :func:`student_of` undoes it.

        Args:
            student: any Detectron2 model that returns its losses in training.
            teacher: see :class:`FrozenTeacher`.
            distiller: a method; its layers are made here.
            balance: weighs the distiller's terms; None leaves their weights as they are.
            input_format: color order of the images given to the model, "BGR" or "RGB"; by
                default ``student.input_format``.
            features: the student's module whose feature maps are distilled.
            levels: names of these maps; empty for all that have a partner in the teacher.
            inherit: copy the teacher's FPN and heads into the student where they agree.
            every: distil in the iterations that it divides only, with so many times the weight;
                see ``MODEL.DISTILLER.EVERY``.

        Returns:
            The student.

        Raises:
            ValueError: an unknown module or level, no common stride, nothing to inherit, an
                ``every`` below 1, or a student that has one of the attributes above itself.
        """
        _check_every(every)
        spare_distiller()
        _check_student(student)
        input_format = input_format or getattr(student, "input_format", None)
        if input_format not in ("BGR", "RGB"):
            raise ValueError(
                f"input_format is {input_format!r}; give DistillRCNN or its student the "
                "color order of the training images: 'BGR' or 'RGB'."
            )
        module = get_feature_module(student, features, called(STUDENT_FEATURES))
        pairs = pair_levels(module.output_shape(), teacher.output_shape(), levels)
        parts = teacher.components()
        if inherit:
            inherit_from(student, parts)
        # the student's random numbers (data order, sampling) are those of its training without
        with torch.random.fork_rng(devices=[]):
            distiller.bind({name: (p.student, p.teacher) for name, p in pairs.items()})
        student.__class__ = _class_of(cls, type(student))
        student.distiller = distiller
        distiller.balance = balance
        # past nn.Module.__setattr__, which would register the teacher
        object.__setattr__(student, "teacher", teacher)
        student.pairs = pairs
        student._distilling = _Settings(input_format, features, every)
        return student

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        _check_every(cfg.MODEL.DISTILLER.EVERY)
        name = cfg.MODEL.STUDENT.META_ARCHITECTURE
        if name not in META_ARCH_REGISTRY or name == cls.__name__:
            known = sorted(k for k, _ in META_ARCH_REGISTRY if k != cls.__name__)
            raise ValueError(
                f"MODEL.STUDENT.META_ARCHITECTURE is '{name}'; it must be one of "
                f"{', '.join(known)}."
            )
        with torch.random.fork_rng(devices=[]):
            distiller = build_distiller(cfg)
        student = META_ARCH_REGISTRY.get(name)(student_config(cfg))
        with torch.random.fork_rng(devices=[]):
            teacher = FrozenTeacher(cfg)
        return {
            "student": student,
            "teacher": teacher,
            "distiller": distiller,
            "balance": build_balance(cfg),
            "input_format": cfg.INPUT.FORMAT,
            "features": cfg.MODEL.STUDENT.FEATURES,
            "levels": cfg.MODEL.DISTILLER.LEVELS,
            "inherit": cfg.MODEL.STUDENT.INHERIT,
            "every": cfg.MODEL.DISTILLER.EVERY,
        }

    def __reduce_ex__(self, protocol: int) -> Tuple[Any, ...]:
        """Copies and pickles name the student's class, because ours is made at run time."""
        _, _, *state = super().__reduce_ex__(max(int(protocol), 2))
        return (_empty, (self._base, self._student_class), *state)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> "DistillRCNN":
        """``.to()`` and its like take the teacher along."""
        object.__setattr__(self, "teacher", self.teacher.follow(fn))
        return super()._apply(fn, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """
        The student's forward, with all its arguments. In training, the distiller's losses come on
        top, named ``loss_distill_*``. What else there is to see is left for :meth:`pop_metrics`.

        Raises:
            ValueError: what the student or the teacher did cannot be distilled; says why.
        """
        if not self.training:
            return super().forward(*args, **kwargs)
        if not self._distils_now():
            return self._run_between(*args, **kwargs)
        batch = self._read_batch(*args, **kwargs)
        wait_for_teacher = self.teacher.start(batch.inputs, self._distilling.input_format)
        try:
            losses, ours = self._run_student(*args, **kwargs)
        except FloatingPointError:  # of Detectron2's proposals, which are not finite here
            self._abstain()
            raise
        theirs = wait_for_teacher()
        self._check_pairs(ours, theirs, batch)
        maps = {name: ours.maps[name] for name in self.pairs}
        seen = self._begin_balance(maps)
        student, teacher = self._pair_maps(seen, theirs.maps)
        terms = self._distil_maps(student, teacher, batch)
        terms = self._balance_terms(losses, maps, terms, seen)
        self._keep_metrics(losses, terms)
        self._show_maps(batch, student, teacher)
        return _total(losses, terms)

    def watch_maps(self, watcher: Callable[[AlignedMaps], None]) -> None:
        """
        Call ``watcher`` once, with the maps that the next step that distils compares. It must
        not change them, nor keep them: they hold the step's graph.
        """
        self._watcher = watcher

    def pop_metrics(self) -> Dict[str, torch.Tensor]:
        """
        Scalars of the last step, on the device: ``distill/<term>_<level>``, each term's value at
        each level; ``detector_loss``, the sum of the student's own losses; and of the balance
        ``distill/share_<term>``, ``cosine_``, ``weight_`` and ``norm_``. To copy them costs a wait
        for the device, so a trainer that calls this copies them with the losses after the
        backward; under any other trainer every 20th step's go to the event storage from here.
        """
        metrics, self.distiller.metrics = self.distiller.metrics or {}, {}
        return metrics

    def _keep_metrics(self, losses: Losses, terms: Terms) -> None:
        metrics = {"detector_loss": _sum(losses)}
        for term, levels in terms.items():
            short = term.replace("loss_distill_", "distill/")
            metrics.update({f"{short}_{level}": value for level, value in levels.items()})
        if self.distiller.balance is not None and terms:
            scalars = self.distiller.balance.scalars()
            metrics.update({f"distill/{name}": value for name, value in scalars.items()})
        metrics = {name: value.detach() for name, value in metrics.items()}
        if self.distiller.metrics is not None:  # somebody pops them
            self.distiller.metrics = metrics
        elif has_event_storage() and get_event_storage().iter % self._metrics_period() == 0:
            values = torch.stack([value.float().reshape(()) for value in metrics.values()])
            get_event_storage().put_scalars(**dict(zip(metrics, values.tolist())))

    def _metrics_period(self) -> int:
        return METRICS_PERIOD * self._distilling.every

    def _distils_now(self) -> bool:
        """
        The same in all processes, in all parts of a batch, and after a resume, because the event
        storage has the trainer's own iteration.
        """
        every = self._distilling.every
        if every == 1:
            return True
        if not has_event_storage():
            raise ValueError(
                f"every (MODEL.DISTILLER.EVERY) is {every}, and there is no event storage to tell "
                "the iteration: train within Detectron2's EventStorage and step() it, or leave it "
                "at 1."
            )
        return get_event_storage().iter % every == 0

    def _run_between(self, *args: Any, **kwargs: Any) -> Losses:
        """A step that does not distil: the student's own losses, by name and value."""
        losses = _named(super().forward(*args, **kwargs))
        self._keep_metrics(losses, {})
        return _with_zero_gradients(losses, self.distiller)

    def _abstain(self) -> None:
        """Where this process alone fails, the others do not wait for it in the balance."""
        if self.distiller.balance is not None:
            self._begin_balance({})
            self.distiller.balance.abstain()

    def _read_batch(self, *args: Any, **kwargs: Any) -> "_Batch":
        """What distillation needs of the batch, before the student may change it."""
        inputs = next(filter(_is_batch, (*args, *kwargs.values())), None)
        if inputs is None:
            raise TypeError(
                "DistillRCNN's forward needs Detectron2's batched inputs in training: a list of "
                "dicts with 'image'."
            )
        boxes = self._object_boxes(inputs) if self.distiller.needs_boxes else None
        images = [x["image"] for x in inputs]
        return _Batch(inputs, images[0], [tuple(x.shape[-2:]) for x in images], boxes)

    def _run_student(self, *args: Any, **kwargs: Any) -> Tuple[Losses, Tapped]:
        """The student's own losses, and its maps."""
        # looked up in every step: a module may be replaced (torch.compile, checkpointing)
        module = self.get_submodule(self._distilling.features)
        with FeatureTap(module, STUDENT_FEATURES) as tap:
            losses = super().forward(*args, **kwargs)
        _check_gradient(module, tap.features)
        return _named(losses), tap.read()

    def _check_pairs(self, ours: Tapped, theirs: Tapped, batch: "_Batch") -> None:
        pairs = self.pairs.values()
        check_maps(ours, {p.student_name: p.student for p in pairs}, batch.sizes, "student")
        check_maps(theirs, {p.teacher_name: p.teacher for p in pairs}, batch.sizes, "teacher")

    def _pair_maps(self, ours: Maps, theirs: Maps) -> Tuple[Maps, Maps]:
        """The student's and the teacher's maps by the student's names, of equal sizes."""
        matched = {n: crop(ours[n], theirs[pair.teacher_name]) for n, pair in self.pairs.items()}
        student, teacher = ({n: two[i] for n, two in matched.items()} for i in (0, 1))
        return student, teacher

    def _begin_balance(self, maps: Maps) -> Maps:
        """What the distiller gets to see of the student's maps."""
        if self.distiller.balance is None:
            return maps
        iteration = get_event_storage().iter if has_event_storage() else None
        return self.distiller.balance.begin(maps, iteration, self._distilling.every)

    def _balance_terms(self, losses: Losses, maps: Maps, terms: Terms, seen: Maps) -> Terms:
        """The terms, weighed by their gradients at the student's maps, times ``every``."""
        balance, every = self.distiller.balance, self._distilling.every
        if balance is not None:
            terms = balance(_sum(losses), maps, terms, seen, self.distiller.proportions)
        if every == 1:
            return terms
        return {t: {k: every * value for k, value in terms[t].items()} for t in terms}

    def _distil_maps(self, student: Maps, teacher: Maps, batch: "_Batch") -> Terms:
        boxes = batch.boxes
        if boxes is not None:
            device = next(iter(student.values())).device
            boxes = [b.to(device) for b in boxes]
        return self.distiller(student, teacher, boxes)

    def _show_maps(self, batch: "_Batch", student: Maps, teacher: Maps) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        strides = {name: pair.stride for name, pair in self.pairs.items()}
        image_format = self._distilling.input_format
        watcher(AlignedMaps(batch.first_image, image_format, student, teacher, strides))

    def _object_boxes(self, batched_inputs: List[Dict[str, Any]]) -> List[torch.Tensor]:
        try:
            boxes = [x["instances"].gt_boxes for x in batched_inputs]
        except (KeyError, AttributeError):
            boxes = [None]
        if not all(isinstance(b, Boxes) for b in boxes):
            raise ValueError(
                f"{type(self.distiller).__name__} (MODEL.DISTILLER) needs the objects' upright "
                "boxes, and the training images have none: choose a method that does without, like "
                "StructuredDistiller or PKD."
            )
        return [b.tensor.clone() for b in boxes]


class _Batch(NamedTuple):
    """
    inputs: as the student gets them; first_image: (C, H, W); sizes: height and width of each image;
    boxes: (G, 4) of each image, or None where the distiller needs none.
    """

    inputs: List[Dict[str, Any]]
    first_image: torch.Tensor
    sizes: List[Size]
    boxes: Optional[List[torch.Tensor]]


def student_of(model: nn.Module) -> nn.Module:
    """
    The student of a distilling model: an object of its own class, without distiller and teacher,
    whose children, parameters and buffers are the model's. Any other model is its own student.
    """
    if not isinstance(model, DistillRCNN):
        return model
    student = copy.copy(model)
    student.__class__ = type(model)._student_class
    student._modules = {k: v for k, v in model._modules.items() if k != "distiller"}
    for name in ("teacher", "pairs", "_distilling", "_watcher"):
        student.__dict__.pop(name, None)
    return student


def _check_every(every: Any) -> None:
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"every (MODEL.DISTILLER.EVERY, in a LazyConfig model.every) is {every!r}; it must be "
            "a whole number above 0."
        )


# what a student has too, and what becomes of both is settled above
_SHARED = ("_apply", "forward", "from_config")


def _check_student(student: nn.Module) -> None:
    if isinstance(student, DistillRCNN):
        raise ValueError("The student is a DistillRCNN already: it has a teacher.")
    ours = ["distiller", "teacher", "pairs", "_distilling", *vars(DistillRCNN)]
    for name in ours:
        if not name.startswith("__") and name not in _SHARED and hasattr(student, name):
            raise ValueError(
                f"The student, a {type(student).__name__}, has an attribute '{name}', which "
                "DistillRCNN needs for its own. Rename it in the student's class."
            )
    if "forward" in vars(student):
        raise ValueError(
            f"The student, a {type(student).__name__}, has a forward() on the object, not in its "
            "class (as torch.compile(model) makes it). Compile or change its modules instead, or "
            "DistillRCNN afterwards."
        )


@functools.lru_cache(maxsize=None)
def _class_of(base: Type[DistillRCNN], student: Type[nn.Module]) -> Type[DistillRCNN]:
    """One class for each class of students, so that ``type(a) is type(b)`` for two of a kind."""
    name = f"{base.__name__}[{student.__name__}]"
    return type(name, (base, student), {"_base": base, "_student_class": student})


def _empty(base: Type[DistillRCNN], student: Type[nn.Module]) -> DistillRCNN:
    """Where a copy or a pickle puts its state; :meth:`DistillRCNN.__new__` would ask for parts."""
    return object.__new__(_class_of(base, student))


def _is_batch(x: Any) -> bool:
    return (
        isinstance(x, (list, tuple))
        and bool(x)
        and all(isinstance(y, dict) and "image" in y for y in x)
    )


def _check_gradient(module: nn.Module, maps: Maps) -> None:
    if not torch.is_grad_enabled() or any(x.requires_grad for x in maps.values()):
        return
    if any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"None of the maps {list(maps)} of {STUDENT_FEATURES} has a gradient, though what "
            "makes them is trained: distillation would not reach it. (Reentrant activation "
            "checkpointing around it does that; use_reentrant=False, or naming the checkpointed "
            "module itself, does not.)"
        )


def _named(losses: Any) -> Losses:
    """The student's losses as a dict; those who train it may have it return a single tensor."""
    if isinstance(losses, torch.Tensor):
        # not SimpleTrainer's "total_loss": that is the name of the sum with the distiller's
        return {"loss": losses}
    if not isinstance(losses, dict):
        raise TypeError(
            f"The student returned a {type(losses).__name__} in training; it must return a dict of "
            "losses, or a single one."
        )
    return losses


def _with_zero_gradients(losses: Losses, distiller: Distiller) -> Losses:
    """
    The losses, with a gradient of zero for the distiller's parameters: data-parallel training
    waits for each, and an optimizer with momentum then sees for the distiller what it sees of the
    terms for the student.
    """
    learning = [p for p in distiller.parameters() if p.requires_grad]
    if not learning:
        return losses
    name, loss = next(iter(losses.items()))
    return {**losses, name: loss + 0.0 * sum(p.sum() for p in learning)}


def _sum(losses: Losses) -> torch.Tensor:
    return sum(value.reshape(()) for value in losses.values())


def _total(losses: Losses, terms: Terms) -> Losses:
    """The student's losses, and each term's sum over levels."""
    twice = sorted(losses.keys() & terms.keys())
    if twice:
        raise ValueError(f"The student and the distiller both have a loss named {twice}.")
    return {**losses, **{name: sum(levels.values()) for name, levels in terms.items()}}
