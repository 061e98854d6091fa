"""
Where feature maps come from, and which of the student's belongs to which of the teacher's.

Shape legend: N images, C channels, H x W positions of a feature map.
"""

from typing import Dict, NamedTuple, Sequence, Tuple

import torch
from detectron2.layers import ShapeSpec
from tabulate import tabulate
from torch import nn


class FeatureTap:
    """
    Reads the dict of feature maps a module returns, without changing the module.

    The hook exists only inside the ``with`` block: outside of it the model is untouched, and no
    feature map outlives the step unless the caller keeps it.

    Examples:
    ::
        with FeatureTap(model.backbone) as tap:
            losses = model(batched_inputs)
        tap.features["p2"]  # (N, C, H, W)
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.features: Dict[str, torch.Tensor] = {}

    def __enter__(self) -> "FeatureTap":
        self._handle = self.module.register_forward_hook(self._read)
        return self

    def __exit__(self, *_) -> None:
        self._handle.remove()

    def _read(self, module, inputs, output) -> None:
        self.features = output


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


def get_feature_module(model: nn.Module, name: str, key: str) -> nn.Module:
    """
    Args:
        model: a detector.
        name: of one of its modules, e.g. ``backbone``.
        key: the config key ``name`` comes from, for the error.

    Raises:
        ValueError: no such module, or one that returns no feature maps; lists those that do.
    """
    modules = feature_modules(model)
    if name not in modules:
        raise ValueError(
            f"{key} is '{name}', which is no module that returns a dict of feature maps. "
            f"Modules that do: {', '.join(modules)}."
        )
    return modules[name]


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
        ValueError: a level that the student lacks or that has no partner, or no common stride.
    """
    unknown = [name for name in levels if name not in student]
    if unknown:
        raise ValueError(
            f"MODEL.DISTILLER.LEVELS names {unknown}, but the student's feature maps are "
            f"{list(student)}."
        )
    pairs = {}
    for name, shape in sorted(student.items(), key=lambda item: item[1].stride):
        partners = [n for n, s in teacher.items() if s.stride == shape.stride]
        if not partners or (levels and name not in levels):
            continue
        partner = name if name in partners else partners[-1]
        pairs[name] = LevelPair(name, partner, shape, teacher[partner])
    alone = [name for name in levels if name not in pairs]
    if alone or not pairs:
        what = f"No feature map of the teacher has the stride of the student's {alone}"
        raise ValueError(
            (what if alone else "Student and teacher have no feature map of a common stride")
            + f".\nstudent:\n{_shape_table(student)}\nteacher:\n{_shape_table(teacher)}"
        )
    return pairs


def _shape_table(shapes: Dict[str, ShapeSpec]) -> str:
    rows = [(name, s.stride, s.channels) for name, s in shapes.items()]
    return tabulate(rows, headers=["name", "stride", "channels"], tablefmt="pipe")


def align(
    student: torch.Tensor, teacher: torch.Tensor, pair: LevelPair, image_size: Tuple[int, int]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    Crop two maps of the same stride to what they share.

    Detectron2 puts images in the upper left corner and pads right and below, so maps that differ
    by padding only (size divisibility, square padding) agree position by position after a crop.
    Nothing is interpolated.

    Args:
        student, teacher: (N, C_s, H_s, W_s) and (N, C_t, H_t, W_t).
        pair: what they are.
        image_size: height and width in pixels of the batch's largest unpadded image.

    Returns:
        Views (N, C_s, H, W) and (N, C_t, H, W), H and W the smaller of both.

    Raises:
        ValueError: the batches differ, or a map is too small to cover the image at its stride.
    """
    h, w = (min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:]))
    # a level may round down at every halving, never by more than one position
    covers = all(m + 1 > size // pair.stride for m, size in zip((h, w), image_size))
    if student.shape[0] != teacher.shape[0] or not covers:
        raise ValueError(
            f"The student's '{pair.student_name}' {tuple(student.shape)} and the teacher's "
            f"'{pair.teacher_name}' {tuple(teacher.shape)} cannot be matched: for images of up to "
            f"{tuple(image_size)} pixels both must have at least "
            f"{tuple(size // pair.stride for size in image_size)} positions at stride "
            f"{pair.stride}."
        )
    return student[..., :h, :w], teacher[..., :h, :w]
