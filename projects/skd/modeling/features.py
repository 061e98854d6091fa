"""
Where feature maps come from, and which of the student's belongs to which of the teacher's.

Shape legend: N images, C channels, H x W positions of a feature map.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.layers import ShapeSpec
from tabulate import tabulate
from torch import nn

from ..config.naming import called

Maps = Dict[str, torch.Tensor]
Size = Tuple[int, int]  # height and width
# Detectors pad to multiples of their coarsest stride, which is at most this.
COARSEST = 128


class Tapped(NamedTuple):
    """
    maps: (N, C, H, W) by name; input_size: height and width of the padded images that the module
    was given, None if it takes something else; input: these images (N, C, H, W).
    """

    maps: Maps
    input_size: Optional[Size]
    input: Optional[torch.Tensor] = None


class FeatureTap:
    """
    Reads the feature maps a module returns, without changing the module; see :func:`as_maps`.

    The hook exists only inside the ``with`` block: outside of it the model is untouched, and no
    feature map outlives the step unless the caller keeps it. The dict is copied when the module
    returns it, because some detectors put something else into it afterwards (DETR does).

    Examples:
    ::
        with FeatureTap(model.backbone) as tap:
            losses = model(batched_inputs)
        tap.features["p2"]  # (N, C, H, W)
    """

    def __init__(self, module: nn.Module, key: str = "the tapped module"):
        """
        Args:
            module: what to read from.
            key: where the user named the module, for errors.
        """
        self.module = module
        self.key = key
        self._runs: List[_Run] = []

    def __enter__(self) -> "FeatureTap":
        self._runs = []
        self._handle = self.module.register_forward_hook(self._read)
        return self

    def __exit__(self, *_) -> None:
        self._handle.remove()

    def _read(self, module: nn.Module, inputs: Tuple[Any, ...], output: Any) -> None:
        maps = as_maps(output, module, self.key)
        image = inputs[0] if inputs else None
        if isinstance(image, torch.Tensor) and image.dim() == 4:
            tapped = Tapped(maps, tuple(image.shape[-2:]), image)
        else:
            tapped = Tapped(maps, None)
        self._runs.append(_Run(tapped, _versions(maps)))

    @property
    def features(self) -> Maps:
        """The maps (N, C, H, W) by name; see :meth:`read`."""
        return self.read().maps

    def read(self) -> Tapped:
        """
        Raises:
            ValueError: the module did not run exactly once, or a map was changed since.
        """
        if len(self._runs) != 1:
            raise ValueError(
                f"{self.key} names a {type(self.module).__name__} that ran {len(self._runs)} times "
                "in one step; it must run once. (A detector that calls the forward() of a module "
                "instead of the module does not count.)"
            )
        self._check_unchanged(self._runs[0])
        return self._runs[0].tapped

    def _check_unchanged(self, run: "_Run") -> None:
        """The values that the module returned are lost where a later one works in place."""
        before, now = run.versions, _versions(run.tapped.maps)
        changed = [name for name in before if before[name] != now[name]]
        if changed:
            raise ValueError(
                f"{self.key} names a {type(self.module).__name__} whose {', '.join(changed)} was "
                "changed in place after it was returned, so what would be distilled is no longer "
                "what it was: set inplace=False in the module that comes behind it, or name a "
                "later one."
            )


class _Run(NamedTuple):
    """What the module returned in one run, and how often that had been changed in place then."""

    tapped: Tapped
    versions: Dict[str, int]


def _versions(maps: Maps) -> Dict[str, int]:
    """How often each map was changed in place, as autograd counts it; where it counts."""
    if torch.compiler.is_compiling():
        return {}
    return {
        name: x._version
        for name, x in maps.items()
        if isinstance(x, torch.Tensor) and not x.is_inference()
    }


def as_maps(output: Any, module: nn.Module, key: str) -> Maps:
    """
    Feature maps by name, of what a module returns: a dict, one map, or a list of maps, which are
    called "0", "1", ... Of a tuple that starts with a dict or a list, that. A map may stand with a
    mask in an object, as its attribute ``tensors``.

    Args:
        module, key: what returned it, and what names that, for the error.

    Raises:
        ValueError: there is no map.
    """
    maps = _find_maps(output)
    if not maps:
        raise ValueError(
            f"{key} names a {type(module).__name__} that returned a {type(output).__name__}; it "
            "must return a feature map, or a dict or a list of feature maps."
        )
    return maps


def _find_maps(output: Any) -> Maps:
    """See :func:`as_maps`; empty where there is no map."""
    if isinstance(output, tuple) and output and isinstance(output[0], (dict, list)):
        output = output[0]
    if isinstance(output, torch.Tensor):
        output = [output]
    if isinstance(output, (list, tuple)):
        maps = {str(i): getattr(x, "tensors", x) for i, x in enumerate(output)}
        found = any(isinstance(x, torch.Tensor) and x.dim() == 4 for x in maps.values())
        return maps if found else {}
    if not isinstance(output, dict):
        return {}
    return {name: getattr(x, "tensors", x) for name, x in output.items()}


def feature_modules(model: nn.Module) -> Dict[str, nn.Module]:
    """All modules of a model that return a dict of feature maps, by name: what can be tapped."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(_output_shape(module), dict)
    }


def _output_shape(module: nn.Module):
    try:
        return module.output_shape()
    except (AttributeError, NotImplementedError, TypeError):  # pooling heads and the like
        return None


class MapsError(ValueError):
    """Feature maps that a network returned are not what its shapes say."""


class LevelPair(NamedTuple):
    """A student's and a teacher's feature map of the same stride."""

    student_name: str
    teacher_name: str
    student: ShapeSpec
    teacher: ShapeSpec

    @property
    def stride(self) -> int:
        return self.student.stride


def pair_levels(
    student: Dict[str, ShapeSpec], teacher: Dict[str, ShapeSpec], levels: Sequence[str] = ()
) -> Dict[str, LevelPair]:
    """
    Pair the feature maps of two detectors by stride.

    Args:
        student, teacher: ``output_shape()`` of what is tapped.
        levels: names of the student's maps to use; empty for all that find a partner.

    Returns:
        Pairs by the student's name, finest first. Where several of the teacher's maps have the
        stride, the one of the same name is taken, else the last.

    Raises:
        ValueError: a level that the student lacks or that has no partner, a map without a stride,
            or no common stride.
    """
    for whose, shapes in (("student", student), ("teacher", teacher)):
        without = [name for name, shape in shapes.items() if not shape.stride]
        if without:
            raise ValueError(
                f"The {whose}'s feature maps {without} have no stride, and maps are paired by "
                "stride. output_shape() of what is tapped must return "
                "ShapeSpec(channels=..., stride=...) for each."
            )
    unknown = [name for name in levels if name not in student]
    if unknown:
        raise ValueError(
            f"{called('MODEL.DISTILLER.LEVELS')} names {unknown}, but the student's feature maps "
            f"are {list(student)}."
        )
    pairs = {}
    for name, shape in sorted(student.items(), key=lambda item: item[1].stride):
        partners = [n for n, s in teacher.items() if s.stride == shape.stride]
        if not partners or (levels and name not in levels):
            continue
        partner = name if name in partners else partners[-1]
        pairs[name] = LevelPair(name, partner, shape, teacher[partner])
    unpaired = [name for name in levels if name not in pairs]
    if unpaired or not pairs:
        what = f"No feature map of the teacher has the stride of the student's {unpaired}"
        raise ValueError(
            (what if unpaired else "Student and teacher have no feature map of a common stride")
            + f".\nstudent:\n{_shape_table(student)}\nteacher:\n{_shape_table(teacher)}"
        )
    return pairs


def check_teacher_maps(shapes: Dict[str, ShapeSpec], pairs: Dict[str, LevelPair]) -> None:
    """
    Args:
        shapes: ``output_shape()`` of a teacher.
        pairs: made with the teacher whose place it takes.

    Raises:
        ValueError: it has other maps.
    """
    expected = {pair.teacher_name: pair.teacher for pair in pairs.values()}
    if any(shapes.get(name) != shape for name, shape in expected.items()):
        raise ValueError(
            "The teacher has other feature maps than the one the model was made with, which the "
            f"distiller's layers fit.\nthis:\n{_shape_table(shapes)}\n"
            f"that:\n{_shape_table(expected)}"
        )


def _shape_table(shapes: Dict[str, ShapeSpec]) -> str:
    rows = [(name, s.stride, s.channels) for name, s in shapes.items()]
    return tabulate(rows, headers=["name", "stride", "channels"], tablefmt="pipe")


def check_maps(
    tapped: Tapped, shapes: Dict[str, ShapeSpec], images: Sequence[Size], whose: str
) -> None:
    """
    Check the maps of one network against what its ``output_shape()`` says of them.

    Args:
        tapped: the maps.
        shapes: of those that are used.
        images: sizes in pixels of the batch's images, before padding.
        whose: "student" or "teacher", for errors.

    Raises:
        MapsError: a map is missing or no map, has other channels, is not one of each image, or its
            size does not follow from the images' at its stride.
    """
    for name, shape in shapes.items():
        x = tapped.maps.get(name)
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            raise MapsError(
                f"The {whose}'s '{name}' is {'missing' if x is None else type(x).__name__}; it "
                "must be a feature map (N, C, H, W)."
            )
        what = f"The {whose}'s '{name}' {tuple(x.shape)} cannot be matched: "
        if x.shape[1] != shape.channels:
            raise MapsError(
                f"{what}output_shape() of what is tapped (or "
                f"{called(f'MODEL.{whose.upper()}.FEATURE_SHAPES')}) says {shape.channels} "
                "channels."
            )
        if x.shape[0] != len(images):
            raise MapsError(
                f"{what}the batch has {len(images)} images. A detector that changes the batch (as "
                "TridentNet, which takes every image three times) can be distilled before it does: "
                f"let {called(f'MODEL.{whose.upper()}.FEATURES')} name a module in front of that."
            )
        _check_stride(x, shape.stride, images, tapped.input_size, what)


def _check_stride(
    x: torch.Tensor, stride: int, images: Sequence[Size], input_size: Optional[Size], what: str
) -> None:
    """:func:`check_maps` for the size of one map (N, C, H, W); ``what``: begins the errors."""
    largest = tuple(max(side) for side in zip(*images))
    # halvings may round down each time: in all that is less than one position
    least = tuple(side // stride for side in largest)
    sides = most = tuple(x.shape[-2:])
    # anything smaller is no padded image, but a map that a neck was given
    if input_size and all(a >= b for a, b in zip(input_size, largest)):
        most = tuple(-(-side // stride) for side in input_size)
    if any(side < low for side, low in zip(sides, least)):
        raise MapsError(
            f"{what}for images of up to {largest} pixels it must have at least {least} positions "
            f"at stride {stride}."
        )
    if any(side > high for side, high in zip(sides, most)):
        raise MapsError(
            f"{what}for images padded to {input_size} pixels it must have at most {most} positions "
            f"at stride {stride}. output_shape() of what is tapped must give the true strides."
        )


def check_input(x: torch.Tensor, images: Sequence[Size], detector: nn.Module, whose: str) -> None:
    """
    Check that a network was given the batch's images as they are, in the upper left corner. Maps
    of one that enlarges its images, or centers them on a canvas, would show other places than the
    other network's at the same positions.

    It shows where padding has to be: pixels there differ. They are read only if the input is
    larger than images padded for strides (or to the detector's own square) are, because that waits
    for the device.

    Args:
        x: (N, C, H, W), what the network was given.
        images: sizes in pixels of the batch's images, before padding.
        detector: with the modules whose ``padding_constraints`` may ask for a square.
        whose: "student" or "teacher", for errors.

    Raises:
        MapsError: it was not.
    """
    largest = tuple(max(side) for side in zip(*images))
    padded = tuple(-(-side // COARSEST) * COARSEST for side in largest)
    sides = tuple(x.shape[-2:])
    if all(a <= b for a, b in zip(sides, padded)) or len(x) != len(images):
        return
    if max(sides) <= square_side(detector) or not _padding_varies(x, images):
        return
    raise MapsError(
        f"The {whose} took images of {sides} pixels for a batch whose largest is {largest}, and "
        "has pixels that differ where padding has to be, right of and below each image. It must "
        f"neither resize nor move images: leave that to the data loader "
        f"({called('INPUT.MIN_SIZE_TRAIN')}), so that both networks' maps show the same at the "
        "same position."
    )


def square_side(detector: nn.Module) -> int:
    """Pixels of the squares that a detector pads its images to; 0 where it does not."""
    constraints = (getattr(m, "padding_constraints", None) for m in detector.modules())
    return max((c.get("square_size", 0) for c in constraints if isinstance(c, dict)), default=0)


def _padding_varies(x: torch.Tensor, images: Sequence[Size]) -> bool:
    """Whether pixels differ right of or below an image of the batch (N, C, H, W)."""
    varies = x.new_zeros((), dtype=torch.bool)
    for image, (h, w) in zip(x, images):
        padding = torch.cat([image[:, :, w:].flatten(1), image[:, h:, :w].flatten(1)], 1)
        if padding.shape[1]:
            varies = varies | (padding.amax(1) != padding.amin(1)).any()
    return bool(varies)


def crop(student: torch.Tensor, teacher: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    Crop two maps of the same stride to what they share.

    Detectron2 puts images in the upper left corner and pads right and below, so maps that differ
    by padding only (size divisibility, square padding) agree position by position after a crop.
    Nothing is interpolated.

    Args:
        student, teacher: (N, C_s, H_s, W_s) and (N, C_t, H_t, W_t).

    Returns:
        Views (N, C_s, H, W) and (N, C_t, H, W), H and W the smaller of both.
    """
    h, w = (min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:]))
    return student[..., :h, :w], teacher[..., :h, :w]
