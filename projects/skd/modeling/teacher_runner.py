"""
The two ways to run a teacher. Detectron2's own detectors say how they prepare images and which maps
their backbones make: these two parts are run, and nothing else is kept. Any other detector is run
by its own forward, as far as what is tapped.
"""

import copy
import inspect
import logging
from itertools import chain
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList
from torch import nn

from ..config.naming import called, setting_to
from .features import (
    FeatureTap,
    Tapped,
    as_maps,
    check_input,
    feature_modules,
)
from .partial_forward import (
    SIDE,
    as_inputs,
    check_module,
    has_forward,
    image_channels,
    map_shapes,
    measure,
    partial_forward,
    says_its_shapes,
)

logger = logging.getLogger(__name__)

NORMALIZED = 10.0  # numbers of normalized images are smaller, the means of others larger

Images = List[torch.Tensor]  # (C, H, W) each, in the teacher's color order


class Running(NamedTuple):
    """
    How a detector is run, and what the user says of it in place of its own code.

    features: the module of it to read feature maps from.
    dtype: to compute in.
    compile: whether the backbone is compiled, at the first images.
    shapes: of what is tapped, by name; empty where it says them itself, or they are measured.
    preprocess: a function of the detector and its inputs that returns an ImageList or (N, C, H, W).
    """

    features: str
    dtype: torch.dtype
    compile: bool
    shapes: Dict[str, ShapeSpec]
    preprocess: Optional[Callable]


class BackboneRunner:
    """
    Prepares images as the detector does, and runs its backbone.

    Attributes:
        detector: what is kept of the model.
        shapes: of the maps, by name.
        halved: whether images come at half their size.
    """

    halved = False

    def __init__(self, model: nn.Module, how: Running):
        """
        Args:
            model: in eval mode, with a ``preprocess_image`` and an ``output_shape()`` of what is
                tapped, as far as the user does not give these.
        """
        self._features, self._root = how.features, _root(model, how)
        if how.compile and how.features != self._root:
            raise ValueError(
                f"{called('MODEL.TEACHER.COMPILE')} needs {setting_to(_key(), self._root)}, not "
                f"'{how.features}'."
            )
        self.detector = _without_heads(model, how.features)
        self._dtype, self._compile, self._preprocess = how.dtype, how.compile, how.preprocess
        self._run: Optional[Callable] = None
        self._checked_scale = False
        measured = {} if self._preprocess is None else self._measured()
        self.shapes = how.shapes or self._own_shapes() or measured

    def _own_shapes(self) -> Dict[str, ShapeSpec]:
        if self._preprocess is not None and not says_its_shapes(self.detector, self._features):
            return {}
        return self.detector.get_submodule(self._features).output_shape()

    def _measured(self) -> Dict[str, ShapeSpec]:
        """Shapes of an image that the user's function prepares; what cannot take it is told now."""
        images = [torch.full((image_channels(self.detector), SIDE, SIDE), 128, dtype=torch.uint8)]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            batch = self._prepare(images)
            try:
                with FeatureTap(self.detector.get_submodule(self._features), _key()) as tap:
                    self.backbone(batch)
                return map_shapes(tap.features, SIDE)
            except Exception as error:  # of code that is not ours
                raise ValueError(
                    f"{_key()} is '{self._features}', and '{self._root}' fails on what "
                    f"{called('MODEL.TEACHER.PREPROCESS')} returned: {error} It must be a module "
                    "that is given the images, or one inside such a module."
                ) from error

    def __getstate__(self) -> Dict[str, Any]:
        """Copies and pickles compile for themselves."""
        return {**self.__dict__, "_run": None}

    @property
    def backbone(self) -> nn.Module:
        """The module that is given the images; what is tapped is this one or in it."""
        return self.detector.get_submodule(self._root)

    running = backbone  # what is made cheaper

    @property
    def device(self) -> torch.device:
        return _device(self.backbone, self.detector)

    def lower_precision(self) -> None:
        self.backbone.to(dtype=self._dtype)

    def check(self) -> None:
        """
        Raises:
            ValueError: images cannot be prepared.
        """
        image = torch.zeros(image_channels(self.detector), 32, 32, dtype=torch.uint8)
        try:
            self._prepare([image])
        except ValueError:
            raise
        except Exception as error:  # of code that is not ours
            raise ValueError(
                f"{self._preparer()} fails on an image of zeros: {error!r}. Give "
                f"{called('MODEL.TEACHER.PREPROCESS')} a function that prepares its images."
            ) from error

    def __call__(self, images: Images) -> Tapped:
        # MODEL.TEACHER.PRECISION says what the teacher computes in, not the student's autocast
        with torch.autocast(self.device.type, enabled=False):
            self._check_scale(images)
            batch = self._prepare(images)
            batch = batch.to(next(self.backbone.parameters(), batch).dtype)
            check_input(batch, [x.shape[-2:] for x in images], self.backbone, "teacher")
            return self._tap(batch)

    def _tap(self, batch: torch.Tensor) -> Tapped:
        size = tuple(batch.shape[-2:])
        if self._features == self._root:
            return Tapped(as_maps(self._compiled()(batch), self.backbone, _key()), size)
        with FeatureTap(self.detector.get_submodule(self._features), _key()) as tap:
            self._compiled()(batch)
        return Tapped(tap.features, size)

    def _compiled(self) -> Callable:
        if self._run is None:
            backbone = self.backbone
            self._run = torch.compile(backbone, dynamic=True) if self._compile else backbone
        return self._run

    def _prepare(self, images: Images) -> torch.Tensor:
        """Normalized and padded (N, C, H, W)."""
        self._check_square(images)
        images = [x.to(self.device, non_blocking=True) for x in images]
        if self._preprocess is not None:
            batch = self._preprocess(self.detector, as_inputs(images))
        elif hasattr(self.detector, "preprocess_image"):
            batch = self.detector.preprocess_image(as_inputs(images))
        else:
            batch = self._normalize(images)
        prepared, batch = batch, _tensor_of(batch)
        if batch is None:
            raise ValueError(
                f"{self._preparer()} returned a {type(prepared).__name__}; it must return an "
                "ImageList or a tensor (N, C, H, W)."
            )
        return batch

    def _preparer(self) -> str:
        """What prepares the images, as errors name it."""
        if self._preprocess is not None:
            return f"{called('MODEL.TEACHER.PREPROCESS')}, {self._preprocess},"
        return f"The teacher's preprocess_image(), of {type(self.detector).__name__},"

    def _normalize(self, images: Images) -> ImageList:
        """Normalize as Detectron2's detectors do; some do it in forward(), which is not called."""
        statistics = [getattr(self.detector, name, None) for name in ("pixel_mean", "pixel_std")]
        if not all(isinstance(x, torch.Tensor) for x in statistics):
            raise ValueError(
                f"The teacher, a {type(self.detector).__name__}, has neither preprocess_image() "
                "nor tensors pixel_mean and pixel_std, so how it normalizes images is unknown: "
                "give its class a preprocess_image(batched_inputs) that returns an ImageList, or "
                f"{called('MODEL.TEACHER.PREPROCESS')}."
            )
        mean, std = (x.to(self.device, non_blocking=True) for x in statistics)
        return ImageList.from_tensors(
            [(x - mean) / std for x in images],
            getattr(self.backbone, "size_divisibility", 0),
            padding_constraints=getattr(self.backbone, "padding_constraints", None),
        )

    def _check_scale(self, images: Images) -> None:
        """Check the first images only, because it waits for the device."""
        if self._checked_scale or self._preprocess is not None:
            return
        self._checked_scale = True
        mean = getattr(self.detector, "pixel_mean", None)
        if not isinstance(mean, torch.Tensor) or mean.max() <= NORMALIZED:
            return
        largest = max(x.abs().max().item() for x in images)
        if largest <= NORMALIZED and all(x.is_floating_point() for x in images):
            logger.warning(
                f"The first images have values up to {largest:.3g}, and the teacher subtracts a "
                f"mean of {mean.max().item():.3g}: they look normalized already, and it was not "
                f"trained on such. Give images of 0 to 255, or "
                f"{called('MODEL.TEACHER.PREPROCESS')} a function that prepares these."
            )

    def _check_square(self, images: Images) -> None:
        constraints = getattr(self.backbone, "padding_constraints", None) or {}
        square = constraints.get("square_size", 0)
        largest = max(max(x.shape[-2:]) for x in images)
        if 0 < square < largest:
            raise ValueError(
                f"The teacher gets an image with a side of {largest} pixels"
                f"{', half of its size,' if self.halved else ''} and pads its images to squares of "
                f"{square}. Make the student's training images no larger than "
                f"{2 * square if self.halved else square} ({called('INPUT.MAX_SIZE_TRAIN')}), or "
                "the teacher's square larger (backbone.square_pad)."
            )


class ForwardRunner:
    """Runs a detector by its own forward, so that it sees images as it always does."""

    def __init__(self, model: nn.Module, how: Running):
        """
        Args:
            model: in eval mode.
        """
        self._features, self._dtype = how.features, how.dtype
        measured, self._entry = measure(model, how.features, _key())
        self.shapes = how.shapes or measured
        if how.compile:
            raise ValueError(
                f"{called('MODEL.TEACHER.COMPILE')} needs a teacher with a preprocess_image() and "
                f"an output_shape() of its '{how.features}'."
            )
        self.detector = copy.copy(model)

    @property
    def backbone(self) -> nn.Module:
        return self.detector.get_submodule(self._features)

    @property
    def running(self) -> nn.Module:
        return self.detector

    @property
    def device(self) -> torch.device:
        return _device(self.backbone, self.detector)

    def lower_precision(self) -> None:
        """Autocast does, as parts of it may need fp32."""

    def check(self) -> None:
        """It has run already, to be measured."""

    def __call__(self, images: Images) -> Tapped:
        device, lower = self.device, self._dtype != torch.float32
        images = [x.to(device, non_blocking=True) for x in images]
        dtype = self._dtype if lower else torch.bfloat16  # autocast refuses fp32, enabled or not
        with torch.autocast(device.type, dtype=dtype, enabled=lower):
            tapped = partial_forward(self.detector, self._features, images, _key(), self._entry)
        check_input(tapped.input, [x.shape[-2:] for x in images], self.detector, "teacher")
        return Tapped(tapped.maps, tapped.input_size)


Runner = Union[BackboneRunner, ForwardRunner]


def make_runner(model: nn.Module, how: Running) -> Runner:
    """The first where model or user say what that needs, or the model has no forward to run."""
    shaped = bool(how.shapes) or says_its_shapes(model, how.features)
    says = how.preprocess is not None or (_prepares_images(model) and shaped)
    kind = BackboneRunner if says or not has_forward(model) else ForwardRunner
    return kind(model, how)


def _prepares_images(model: nn.Module) -> bool:
    """
    Whether it has a ``preprocess_image(batched_inputs)`` that needs nothing else and returns images
    in a way that is known. One that fails is told later, by :meth:`BackboneRunner.check`.
    """
    prepare = getattr(model, "preprocess_image", None)
    try:
        inspect.signature(prepare).bind([])
    except TypeError:
        return False
    image = torch.zeros(image_channels(model), 32, 32, dtype=torch.uint8, device=_device(model))
    try:
        return _tensor_of(prepare(as_inputs([image]))) is not None
    except Exception:  # of code that is not ours
        return True


def _tensor_of(prepared: Any) -> Optional[torch.Tensor]:
    """(N, C, H, W) of what preprocess_image returns, of a tuple its first; None if not known."""
    if isinstance(prepared, tuple) and prepared:  # Sparse R-CNN and its kin: with sizes
        prepared = prepared[0]
    images = getattr(prepared, "tensor", prepared)  # an ImageList, or a class like it
    return images if isinstance(images, torch.Tensor) else None


def _key() -> str:
    """What the user calls the setting that names the tapped module."""
    return called("MODEL.TEACHER.FEATURES")


def _device(*modules: nn.Module) -> torch.device:
    """The device of the first parameter, or else buffer."""
    tensors = [m.parameters() for m in modules] + [m.buffers() for m in modules]
    return next(chain(*tensors, [torch.zeros(())])).device


def _root(model: nn.Module, how: Running) -> str:
    """The outermost module with feature maps around the one that is named: it takes images."""
    given = bool(how.shapes or how.preprocess)
    check_module(model, how.features, _key(), says_shapes=not given)
    names = [how.features, *feature_modules(model)]
    return min((n for n in names if f"{how.features}.".startswith(f"{n}.")), key=len)


def _without_heads(model: nn.Module, features: str) -> nn.Module:
    """The same object without the children that learn, but for the one with the features."""
    detector = copy.copy(model)
    detector._modules = {
        name: child
        for name, child in model._modules.items()
        if name == features.split(".")[0] or not _learns(child)
    }
    return detector


def _learns(module: Optional[nn.Module]) -> bool:
    return module is not None and next(module.parameters(), None) is not None
