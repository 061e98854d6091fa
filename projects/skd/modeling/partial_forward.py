"""
Run any detector as far as one of its modules, by its own forward; and measure what comes out there.

So a detector's images are prepared by its own code, wherever that is, and a module can be tapped
that says nothing of its maps' strides and channels.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from .features import FeatureTap, Maps, Tapped, feature_modules

SIDE = 256  # of the image to measure with: the coarsest maps, of stride 128, have 2 x 2 positions


class _Reached(BaseException):
    """No Exception, which a detector may catch."""


class Measured(NamedTuple):
    """
    shapes: of the module's maps, by name; entry: the module that is given the images, by name.
    """

    shapes: Dict[str, ShapeSpec]
    entry: str


def has_forward(model: nn.Module) -> bool:
    """Whether a model has a forward of its own."""
    return type(model).forward is not nn.Module.forward


@torch.no_grad()
def partial_forward(
    detector: nn.Module, name: str, images: List[torch.Tensor], key: str, entry: str
) -> Tapped:
    """
    Args:
        detector: in eval mode.
        name: of the module at which to stop.
        images: (C, H, W) each, as its data loader gives them.
        key: what names the module, for errors.
        entry: from :func:`measure`.

    Raises:
        ValueError: the module did not run, or does not return feature maps.
    """
    given: List[torch.Tensor] = []
    handle = detector.get_submodule(entry).register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0])
    )
    try:
        tap = _run(detector, name, images, key)
    finally:
        handle.remove()
    return Tapped(tap.features, tuple(given[0].shape[-2:]), given[0])


def _run(detector: nn.Module, name: str, images: List[torch.Tensor], key: str) -> FeatureTap:
    inputs = as_inputs(images)
    return tap_and_stop(detector.get_submodule(name), key, lambda: detector(inputs))


def as_inputs(images: List[torch.Tensor]) -> List[Dict[str, Any]]:
    """Batched inputs of images (C, H, W), as detectors take them to predict."""
    return [{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images]


def tap_and_stop(module: nn.Module, key: str, call: Callable[[], Any]) -> FeatureTap:
    """
    Args:
        module: at which to stop.
        key: what names it, for errors.
        call: runs the detector that it is a part of.

    Returns:
        The tap with the module's maps. What comes behind the module has not run.
    """
    with FeatureTap(module, key) as tap:
        # after the tap's own hook
        handle = module.register_forward_hook(_stop)
        try:
            call()
        except _Reached:
            pass
        finally:
            handle.remove()
    return tap


def _stop(*_: Any) -> None:
    raise _Reached


def measure(detector: nn.Module, name: str, key: str) -> Measured:
    """
    What a module's maps are, by one run on an image of noise.

    Args:
        detector: any; its mode, its random numbers and its statistics stay as they are.
        name: of the module.
        key: what names it, for errors.

    Raises:
        ValueError: there is no such module, or the detector cannot be run as far as that, or it
            returns no feature maps.
    """
    check_module(detector, name, key)
    first = _FirstInput(detector)
    device = next(iter(detector.parameters()), torch.zeros(())).device
    training = {m: m.training for m in detector.modules()}
    size = (image_channels(detector), SIDE, SIDE)
    image = torch.full(size, 128, dtype=torch.uint8, device=device)
    try:
        detector.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad(), first:
            maps = _run(detector, name, [image], key).features
    except Exception as error:  # of the detector's own code
        raise ValueError(
            f"{key} is '{name}', and a {type(detector).__name__} that is run on an image as far as "
            f"that returns no feature maps: {error} {_known(detector)}"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return Measured(map_shapes(maps, first.side), first.name)


def map_shapes(maps: Maps, side: int) -> Dict[str, ShapeSpec]:
    """What maps are, of an image of that many pixels."""
    return {
        n: ShapeSpec(channels=x.shape[1], stride=round(side / x.shape[2]))
        for n, x in maps.items()
        if isinstance(x, torch.Tensor) and x.dim() == 4
    }


def check_module(detector: nn.Module, name: str, key: str, says_shapes: bool = False) -> None:
    """
    Args:
        name: of one of the detector's modules, e.g. ``backbone``.
        key: what names it, for the error.
        says_shapes: whether it is to have an ``output_shape()``.

    Raises:
        ValueError: no such module; lists those that return feature maps.
    """
    modules = feature_modules(detector) if says_shapes else dict(detector.named_modules())
    if not name or name not in modules:
        raise ValueError(
            f"{key} is '{name}', which is no module that returns feature maps. {_known(detector)}"
        )


def _known(detector: nn.Module) -> str:
    names = ", ".join(feature_modules(detector))
    parts = ", ".join(name for name, _ in detector.named_children())
    return f"Modules that do: {names or f'none that says so; its parts are {parts}'}."


class _FirstInput:
    """Which of a detector's modules is first given (N, C, H, W), and how large that is."""

    def __init__(self, detector: nn.Module):
        self.modules = {m: n for n, m in detector.named_modules()}
        self.name: Optional[str] = None
        self.side = 0

    def __enter__(self) -> "_FirstInput":
        self._handles = [m.register_forward_pre_hook(self._read) for m in self.modules]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _read(self, module: nn.Module, inputs: Any) -> None:
        x = inputs[0] if inputs else None
        if self.name is None and isinstance(x, torch.Tensor) and x.dim() == 4:
            self.name, self.side = self.modules[module], x.shape[2]


def color_order(detector: nn.Module, given: Optional[str], name: str, hint: str) -> str:
    """
    The color order of a detector's images: as given, or else its ``input_format``.

    Args:
        name: what the user calls it, for the error.
        hint: where to give it, or what else it may be: the error's end.

    Raises:
        ValueError: it is not known, or no text.
    """
    found = given or getattr(detector, "input_format", None)
    if not isinstance(found, str) or not found:
        raise ValueError(f"{name} is {found!r}; it must be 'BGR' or 'RGB', {hint}")
    return found


def image_channels(detector: nn.Module) -> int:
    """How many channels its images have: as many as its mean, or 3 where it has none."""
    mean = getattr(detector, "pixel_mean", None)
    return mean.numel() if isinstance(mean, torch.Tensor) else 3


def says_its_shapes(model: nn.Module, name: str) -> bool:
    """Whether a module has an ``output_shape()`` with a stride for each map."""
    module = feature_modules(model).get(name)
    return module is not None and all(s.stride for s in module.output_shape().values())


def given_shapes(entries: Sequence[Sequence[Any]], key: str) -> Dict[str, ShapeSpec]:
    """
    Shapes by name, as the user has given them; empty where there are none.

    Args:
        entries: (name, stride, channels) of each map.
        key: where they are given.

    Raises:
        ValueError: something else.
    """
    entries = [list(e) if isinstance(e, Sequence) else [e] for e in entries]
    kinds = [[type(x) for x in entry] for entry in entries]
    good = all(kind == [str, int, int] for kind in kinds)
    if not good or any(x < 1 for entry in entries for x in entry[1:]):
        raise ValueError(
            f"{key} is {entries}; it must be [[name, stride, channels], ...], as in "
            "[['p3', 8, 256], ['p4', 16, 256]]."
        )
    return {name: ShapeSpec(stride=stride, channels=width) for name, stride, width in entries}


def output_shapes(model: nn.Module, name: str, key: str) -> Dict[str, ShapeSpec]:
    """The shapes of a module's maps, by name: as it says, or measured."""
    if says_its_shapes(model, name):
        return model.get_submodule(name).output_shape()
    return measure(model, name, key).shapes
