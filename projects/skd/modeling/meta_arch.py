"""The student, the frozen teacher and the distiller, as one Detectron2 model."""

import math
from typing import Any, Dict, List, Optional, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ..config import student_config
from ..distillers import Distiller, GradientBalance, build_balance, build_distiller
from ..visualization.attention import draw_attention
from .features import FeatureTap, align, get_feature_module, pair_levels
from .inherit import inherit as inherit_from
from .teacher import FrozenTeacher


@META_ARCH_REGISTRY.register()
class DistillRCNN(nn.Module):
    """
    Trains a student detector with its own losses plus those of a distiller.

    To everything around it this is the student: its children, parameters and buffers are the
    student's under the student's own names, and in eval mode it is the student. Only the
    distiller's parameters come on top, below ``distiller.``. The teacher is not registered as a
    submodule, so neither checkpoints, optimizers nor data-parallel wrappers know of it.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: FrozenTeacher,
        distiller: Distiller,
        balance: Optional[GradientBalance] = None,
        input_format: Optional[str] = None,
        features: str = "backbone",
        levels: Sequence[str] = (),
        inherit: bool = False,
        vis_period: int = 0,
    ):
        """
        Args:
            student: any Detectron2 model that returns a dict of losses in training.
            teacher: see :class:`FrozenTeacher`.
            distiller: a method; its layers are made here.
            balance: weighs the distiller's terms; None leaves their weights as they are.
            input_format: colour order of the images given to the model, "BGR" or "RGB"; by
                default ``student.input_format``.
            features: the student's module whose feature maps are distilled.
            levels: names of these maps; empty for all that have a partner in the teacher.
            inherit: copy the teacher's FPN and heads into the student where they agree.
            vis_period: every how many iterations to write pictures of attention; 0 for never.

        Raises:
            ValueError: an unknown module or level, no common stride, or nothing to inherit.
        """
        super().__init__()
        # the same dicts, not copies: what replaces a tensor in one (as .to() does with buffers)
        # replaces it in both
        self._parameters = student._parameters
        self._buffers = student._buffers
        self._non_persistent_buffers_set = student._non_persistent_buffers_set
        self._modules.update(student._modules)
        self.distiller = distiller
        distiller.balance = balance
        # past nn.Module.__setattr__, which would register them
        object.__setattr__(self, "student", student)
        object.__setattr__(self, "teacher", teacher)

        self.input_format = input_format or getattr(student, "input_format", None)
        if self.input_format not in ("BGR", "RGB"):
            raise ValueError(
                f"input_format is {self.input_format!r}; give DistillRCNN or its student the "
                "colour order of the training images: 'BGR' or 'RGB'."
            )
        self.vis_period = vis_period
        module = get_feature_module(student, features, "MODEL.STUDENT.FEATURES")
        object.__setattr__(self, "_features", module)
        self.pairs = pair_levels(module.output_shape(), teacher.output_shape(), levels)
        parts = teacher.take_components()
        if inherit:
            inherit_from(student, parts)
        # the student's random numbers (data order, sampling) are those of a plain training
        with torch.random.fork_rng(devices=[]):
            distiller.bind({name: (p.student, p.teacher) for name, p in self.pairs.items()})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
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
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        return self.student.device

    def train(self, mode: bool = True) -> "DistillRCNN":
        self.student.train(mode)
        return super().train(mode)

    def _apply(self, fn, *args, **kwargs) -> "DistillRCNN":
        self.teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def forward(self, batched_inputs: List[Dict[str, Any]]):
        """
        Same as the student's forward. In training, the losses of the distiller come on top, named
        ``loss_distill_*``, and the event storage gets ``distill/*`` for each term and level.

        Raises:
            FloatingPointError: a loss is not finite; names it, its level and the iteration.
        """
        if not self.training:
            return self.student(batched_inputs)

        teacher_features = self.teacher.start(batched_inputs, self.input_format)
        with FeatureTap(self._features) as tap:
            losses = self.student(batched_inputs)
        teacher_features = teacher_features()
        image_size = [max(x["image"].shape[i] for x in batched_inputs) for i in (1, 2)]
        balance, maps = self.distiller.balance, {n: tap.features[n] for n in self.pairs}
        seen = maps
        if balance is not None:
            iteration = get_event_storage().iter if has_event_storage() else None
            seen = balance.begin(maps, iteration)
        student, teacher = {}, {}
        for name, pair in self.pairs.items():
            student[name], teacher[name] = align(
                seen[name], teacher_features[pair.teacher_name], pair, image_size
            )
        boxes = None
        if self.distiller.needs_boxes:
            boxes = self._object_boxes(batched_inputs)
        terms = self.distiller(student, teacher, boxes)
        if balance is not None:
            terms = balance(sum(losses.values()), maps, terms, seen, self.distiller.proportions)
        _report(losses, terms, batched_inputs)
        if balance is not None and has_event_storage():
            balance_scalars(balance)
        if self.vis_period > 0 and has_event_storage():
            storage = get_event_storage()
            if storage.iter % self.vis_period == 0:
                strides = {name: pair.stride for name, pair in self.pairs.items()}
                picture = draw_attention(
                    batched_inputs[0], self.input_format, student, teacher, strides
                )
                storage.put_image("attention: input, student, teacher", picture)
        return {**losses, **{name: sum(levels.values()) for name, levels in terms.items()}}

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
        return [b.tensor.to(self.device) for b in boxes]


def balance_scalars(balance):
    storage = get_event_storage()
    for name, cosine in balance.cosines.items():
        storage.put_scalar(f"distill/cosine_{name}", cosine.item(), smoothing_hint=False)
    for name, w in balance.weights().items():
        storage.put_scalar(f"distill/weight_{name}", w.item(), smoothing_hint=False)
    for name, n in balance.norms().items():
        storage.put_scalar(f"distill/norm_{name}", n.item(), smoothing_hint=False)


def _report(
    losses: Dict[str, torch.Tensor],
    terms: Dict[str, Dict[str, torch.Tensor]],
    batched_inputs: List[Dict[str, Any]],
) -> None:
    """Write each term at each level to the event storage; stop at the first that is not finite."""
    levels = [(term, level, loss) for term, by in terms.items() for level, loss in by.items()]
    named = dict(losses)
    named.update({f"{term} at level {level}": loss for term, level, loss in levels})
    # one copy from the device for all of them
    values = dict(zip(named, torch.stack([v.detach().float() for v in named.values()]).tolist()))
    storage = get_event_storage() if has_event_storage() else None
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        at = f"iteration {storage.iter}" if storage is not None else "this step"
        images = [x.get("image_id", x.get("file_name", "?")) for x in batched_inputs]
        raise FloatingPointError(
            f"Loss is not finite at {at}, images {', '.join(map(str, images))}: {'; '.join(bad)}. "
            "The optimizer has not stepped. Lower SOLVER.BASE_LR or the distillation weights, "
            "enable SOLVER.CLIP_GRADIENTS, or let SOLVER.SKIP_NON_FINITE batches be left out."
        )
    if storage is not None:
        for term, level, _ in levels:
            name = term.replace("loss_distill_", "distill/")
            storage.put_scalar(f"{name}_{level}", values[f"{term} at level {level}"])
