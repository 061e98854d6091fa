"""The frozen teacher: built, loaded in full or refused, and run without a trace."""

import copy
import logging
import os
from itertools import chain
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from ..config import Config
from ..config.built import find_built
from ..config.lazy_config import made_by
from ..config.naming import called
from ..config.projects import check_function_allowed, load_function
from .build_detector import DetectorSource, detector_args
from .features import Maps, Tapped, square_side
from .heads import check_full_size
from .inherit import State, components
from .load import load_in_full
from .partial_forward import color_order, given_shapes
from .teacher_runner import Running, make_runner
from .teacher_speed import PRECISIONS, fold_batch_norm, halve, of_halved

logger = logging.getLogger(__name__)
FORMAT_HINT = "or for images without colors the name that the student has for it too."


class FrozenTeacher(nn.Module):
    """
    The backbone of a trained detector, never trained and always in eval mode.

    Images are normalized and padded by the detector's own code, whatever the student does. Its
    weights never change, so models that are copied share it (:meth:`follow`).
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        weights: Optional[str],
        input_format: Optional[str] = None,
        features: str = "backbone",
        feature_shapes: Sequence[Sequence[Any]] = (),
        preprocess: Union[str, Callable, None] = None,
        random_weights: bool = False,
        precision: str = "fp32",
        fold_bn: bool = True,
        channels_last: bool = True,
        compile: bool = False,
        side_stream: bool = False,
        half_size: bool = False,
        config: Optional[Dict[str, Any]] = None,
        heads: bool = False,
        classes: Sequence[str] = (),
    ):
        """
        Args:
            model: a detector. With ``preprocess_image``, and an ``output_shape()`` of what is
                tapped, as Detectron2's have, that and the backbone are run. Any other is run by
                its own forward, as far as what is tapped, so that it sees images as it always does.
            weights: its checkpoint, path or URL. Must match ``model`` in full. None for a model
                that has its weights.
            input_format: color order the detector was trained with, "BGR" or "RGB", or a name for
                images of other channels ("L"); by default ``model.input_format``.
            features: the module of ``model`` to read feature maps from.
            feature_shapes: (name, stride, channels) of these maps, in place of ``output_shape()``.
            preprocess: what prepares images in place of the model's own code: a function of the
                model and Detectron2's standard inputs that returns an ImageList or (N, C, H, W), or
                its name, "MODULE:FUNCTION".
            random_weights: keep the model untrained; ``weights`` must be empty.
            precision, fold_bn, channels_last, compile, side_stream, half_size: see
                ``MODEL.TEACHER``.
            config: what ``model`` was made from, for the record of a run.
            heads: keep the heads too, for :class:`TeacherHeads`, as ``whole``; they do not run
                here. Not with ``half_size``.
            classes: names of what the heads tell apart, in their order; empty if unknown.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file does not fit the model, or an argument is wrong; says which.
        """
        super().__init__()
        _check(precision, weights, random_weights)
        check_full_size(heads and half_size)
        _load(model, weights, random_weights)
        name = "The teacher's input_format"
        self.input_format = color_order(model, input_format, name, FORMAT_HINT)
        self.weights, self.config = weights, config
        self.features = features
        self.side_stream, self.half_size = side_stream, half_size
        self._components = _on_host(components(model))
        shapes = given_shapes(feature_shapes, called("MODEL.TEACHER.FEATURE_SHAPES"))
        how = Running(features, PRECISIONS[precision], compile, shapes, _preprocess(preprocess))
        model.eval()
        self._runner = runner = make_runner(model, how)
        self.detector, runner.halved = runner.detector, half_size
        self.whole, self.classes = copy.copy(model) if heads else None, list(classes)
        self.requires_grad_(False)
        self.eval()
        if fold_bn:
            fold_batch_norm(runner.running)
        runner.lower_precision()
        if channels_last:
            runner.running.to(memory_format=torch.channels_last)
        runner.check()
        if half_size:
            _warn_of_square(self.detector)
        self._shared = False
        self._stream: Optional["torch.cuda.Stream"] = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        return detector_args(DetectorSource.of_config(cfg), **_running_args(cfg))

    @classmethod
    def of_built(cls, cfg: CfgNode, built: nn.Module) -> "FrozenTeacher":
        """A detector that is built and loaded, with what ``MODEL.TEACHER`` says of the rest."""
        teacher = cfg.MODEL.TEACHER
        return freeze_built(
            built,
            {"projects": teacher.PROJECTS, "random_weights": teacher.RANDOM_WEIGHTS},
            weights=teacher.WEIGHTS,
            opts=teacher.OPTS,
            **_running_args(cfg),
        )

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in eval mode whatever is asked."""
        return super().train(False)

    def __getstate__(self) -> Dict[str, Any]:
        """Copies and pickles make their own stream, and compile for themselves."""
        return {**self.__dict__, "_stream": None, "_shared": False}

    def __deepcopy__(self, memo: Dict[int, Any]) -> "FrozenTeacher":
        """Itself: an average of a model's weights, say, needs no teacher of its own."""
        self._shared = True
        return self

    def follow(self, fn: Callable) -> "FrozenTeacher":
        """
        Go where the model goes.

        Args:
            fn: what ``nn.Module._apply`` does to the model's tensors (``.to()``, ``.half()``).

        Returns:
            The teacher with its tensors there: itself, or where other models share it and it would
            have to leave them, a copy.
        """
        here = chain(self.parameters(), self.buffers())
        leaves = self._shared and any(_follow(t, fn) is not t for t in here)
        teacher = self._copy() if leaves else self
        return teacher._apply(fn)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> "FrozenTeacher":
        """
        Send tensors where ``fn`` does, with the values they have: ``to_empty()`` is for weights
        that are yet to be loaded. ``precision`` says what halves the teacher, not ``.half()``.
        """
        return super()._apply(lambda t: _follow(t, fn), *args, **kwargs)

    def _copy(self) -> "FrozenTeacher":
        state = self.__getstate__()
        own = {"_components": state.pop("_components")}  # nothing changes them
        twin = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(state), **own)
        return twin

    @property
    def backbone(self) -> nn.Module:
        """The module that is given the images; what is tapped is this one or in it."""
        return self._runner.backbone

    def components(self) -> Dict[str, State]:
        """What a student may inherit, by component: in the host's memory, as it was loaded."""
        return self._components

    def output_shape(self) -> Dict[str, ShapeSpec]:
        """Shapes by level name; strides in pixels of the images that :meth:`forward` is given."""
        shapes = self._runner.shapes
        return {n: of_halved(s) for n, s in shapes.items()} if self.half_size else shapes

    def forward(self, batched_inputs: List[Dict[str, Any]], image_format: str) -> Maps:
        """
        Args:
            batched_inputs: Detectron2's standard inputs; only ``image`` (C, H, W) is read.
            image_format: color order of these images, "BGR" or "RGB".

        Returns:
            Feature maps (N, C, H, W) by level name.

        Raises:
            ValueError: an image is larger than the square the teacher pads to.
        """
        return self.start(batched_inputs, image_format)().maps

    def start(
        self, batched_inputs: List[Dict[str, Any]], image_format: str
    ) -> Callable[[], Tapped]:
        """
        Begin :meth:`forward` on a CUDA stream of the teacher's own; without ``side_stream`` or
        without a GPU run it at once: its working memory is then free again before the student's
        activations are there.

        Returns:
            A function that waits for the feature maps and returns them, with the size of the
            padded images, in pixels of ``batched_inputs``.
        """
        images = [x["image"] for x in batched_inputs]
        flips = image_format != self.input_format
        if flips:
            self._check_format(image_format, images)
        device = self._runner.device
        if not self.side_stream or device.type != "cuda":
            tapped = self._tap(_in_order(images, flips))
            return lambda: tapped
        current = torch.cuda.current_stream(device)
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # all that this stream reads is made in it
            tapped = self._tap(_in_order(images, flips))

        def wait() -> Tapped:
            current.wait_stream(self._stream)
            for x in tapped.maps.values():
                if isinstance(x, torch.Tensor):  # what is none is named later
                    x.record_stream(current)  # its memory is in use there until then
            return tapped

        return wait

    def _check_format(self, image_format: str, images: List[torch.Tensor]) -> None:
        """Colors can be reordered; anything else has to be the same for both networks."""
        colors = {image_format, self.input_format} == {"BGR", "RGB"}
        channels = {x.shape[0] for x in images}
        if not colors or channels != {3}:
            raise ValueError(
                f"The student's images have {'/'.join(map(str, channels))} channels in the format "
                f"'{image_format}', the teacher's have '{self.input_format}': only BGR and RGB of "
                "three channels can be turned into each other. Give a teacher that was trained "
                f"with the student's kind of images, and both the same {called('INPUT.FORMAT')}."
            )

    @torch.no_grad()
    def _tap(self, images: List[torch.Tensor]) -> Tapped:
        if not self.half_size:
            return self._runner(images)
        device = self._runner.device  # where halving costs nothing
        tapped = self._runner([halve(x.to(device, non_blocking=True)) for x in images])
        size = tapped.input_size
        return tapped._replace(input_size=size and (2 * size[0], 2 * size[1]))


def _load(model: nn.Module, weights: Optional[str], random_weights: bool) -> None:
    if random_weights:
        logger.warning(
            f"THE TEACHER IS UNTRAINED ({called('MODEL.TEACHER.RANDOM_WEIGHTS')}): "
            "the student learns nothing of use from it."
        )
    elif weights is not None:
        load_in_full(model, weights)


def _preprocess(given: Union[str, Callable, None]) -> Optional[Callable]:
    """A function, or its name; the name may be empty."""
    if not isinstance(given, str):
        return given
    return load_function(given, called("MODEL.TEACHER.PREPROCESS")) if given else None


def _warn_of_square(detector: nn.Module) -> None:
    side = square_side(detector)
    if side:
        logger.warning(
            f"{called('MODEL.TEACHER.HALF_SIZE')} is True, and the teacher pads its images to "
            f"squares of {side} pixels, however small they are: nothing is saved. Make its square "
            f"half as large (backbone.square_pad, in {called('MODEL.TEACHER.OPTS')})."
        )


def _running_args(cfg: CfgNode) -> Dict[str, Any]:
    teacher, heads = cfg.MODEL.TEACHER, bool(cfg.MODEL.DISTILLER.HEADS.NAMES)
    check_function_allowed(teacher.PREPROCESS, "MODEL.TEACHER.PREPROCESS")
    check_full_size(heads and teacher.HALF_SIZE)  # before anything is built
    return {
        "heads": heads,
        "features": teacher.FEATURES,
        "feature_shapes": teacher.FEATURE_SHAPES,
        "preprocess": teacher.PREPROCESS,
        "precision": teacher.PRECISION,
        "fold_bn": teacher.FOLD_BN,
        "channels_last": teacher.CHANNELS_LAST,
        "compile": teacher.COMPILE,
        "side_stream": teacher.SIDE_STREAM,
        "half_size": teacher.HALF_SIZE,
    }


def _check(precision: str, weights: Optional[str], random_weights: bool) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"{called('MODEL.TEACHER.PRECISION')} is {precision!r}; it must be one of "
            f"{', '.join(map(repr, PRECISIONS))}."
        )
    if random_weights and weights:
        raise ValueError(
            f"{called('MODEL.TEACHER.RANDOM_WEIGHTS')} is True, but "
            f"{called('MODEL.TEACHER.WEIGHTS')} names '{weights}'. Keep one of the two."
        )


def _in_order(images: List[torch.Tensor], flips: bool) -> List[torch.Tensor]:
    """
    Images in the order of the teacher's channels, before the mean is subtracted, which is in that
    order.
    """
    return [x.flip(0) for x in images] if flips else images


def _on_host(parts: Dict[str, State]) -> Dict[str, State]:
    return {name: {k: v.cpu() for k, v in state.items()} for name, state in parts.items()}


def _follow(t: torch.Tensor, fn: Callable) -> torch.Tensor:
    """A tensor where ``fn`` puts one like it; of another type only if neither is a half one."""
    probe = fn(t.new_zeros(()))
    halves = min(t.element_size(), probe.element_size()) < 4
    return t.to(probe.device, t.dtype if halves else probe.dtype)


def build_teacher(
    config_file: str, projects: Sequence[str] = (), weights: str = "", **kwargs: Any
) -> FrozenTeacher:
    """
    Build a teacher from a file or a model-zoo name; for LazyConfig and for Python.

    Args:
        config_file, projects, weights: see ``MODEL.TEACHER``.
        kwargs: ``opts``, ``features``, ``feature_shapes``, ``preprocess``, ``random_weights``,
            ``precision``, ``fold_bn``, ``channels_last``, ``compile``, ``side_stream``,
            ``half_size``, as the config keys; ``heads``, as for :class:`FrozenTeacher`.
    """
    check_full_size(kwargs.get("heads", False) and kwargs.get("half_size", False))
    config_file, kwargs["weights"] = os.fspath(config_file), os.fspath(weights or "")
    built = find_built(config_file)
    with torch.random.fork_rng(devices=[]):  # the student's random numbers are its own
        if built is not None:
            return freeze_built(built, {"projects": projects}, **kwargs)
        given = {k: kwargs.pop(k) for k in DetectorSource._fields if k in kwargs}
        source = DetectorSource(config_file, projects=projects, **given)
        return FrozenTeacher(**detector_args(source, **kwargs))


def teacher_source(cfg: Config) -> Optional[DetectorSource]:
    """
    What the whole detector is built from whose backbone is the teacher of a config of either form;
    None where a LazyConfig's teacher is not made by :func:`build_teacher`.
    """
    if isinstance(cfg, CfgNode):
        return DetectorSource.of_config(cfg)
    teacher = cfg.model.teacher
    if made_by(teacher) is not build_teacher:
        return None
    named = {k: teacher[k] for k in DetectorSource._fields if k in teacher}
    return DetectorSource(**{**named, "projects": list(named.get("projects") or ())})


def freeze_built(
    built: nn.Module, idle: Dict[str, Any], weights: str = "", **kwargs: Any
) -> FrozenTeacher:
    """
    A teacher of a detector that is built, or the :class:`FrozenTeacher` that it is already.

    Args:
        idle: settings that only a teacher has that is built from a config, and their values.
        weights: as for :class:`FrozenTeacher`; empty for a detector that has its weights.
        kwargs: further arguments of :class:`FrozenTeacher`.

    Raises:
        ValueError: a setting that comes too late.
    """
    frozen = isinstance(built, FrozenTeacher)
    late = {"weights": weights, "half_size": kwargs.get("half_size")} if frozen else {}
    idle = {**idle, "opts": kwargs.pop("opts", ()), **late}
    for name, value in idle.items():
        if value:
            raise ValueError(
                f"{called(f'MODEL.TEACHER.{name.upper()}')} is {value!r}, and the teacher is a "
                f"{type(built).__name__} that is built already: leave it out."
            )
    return built if frozen else FrozenTeacher(model=built, weights=weights or None, **kwargs)
