"""
Dense heads: RetinaNet and FCOS, whose maps are compared as they are.

Shape legend: N images, A anchors of a position, K classes of one side, S that both know, H x W
positions, R of them and their anchors at a level, of all images.
"""

from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import nn

from ...distillers.heads import EPSILON, giou_distance, quality_focal
from ..features import crop
from .base import (
    HEAD_REGISTRY,
    HeadPair,
    Unfit,
    check_anchors,
    common_levels,
    equal,
    of_classes,
    submodule,
)

PARTS = ("head", "head_in_features", "anchor_generator", "box2box_transform", "num_classes")
Predictions = Tuple[List[torch.Tensor], ...]  # class logits and box deltas by level, and others


class _Compared(NamedTuple):
    """logits: (R, S); boxes: (R, 4) XYXY in pixels; of student and teacher."""

    logits: Tuple[torch.Tensor, torch.Tensor]
    boxes: Tuple[torch.Tensor, torch.Tensor]


@HEAD_REGISTRY.register()
class DenseHead(HeadPair):
    """
    Detectron2's ``RetinaNet`` or ``FCOS``, the same in both, with the same anchors at a level.

    Over all levels: ``sum QFL / B`` for classes and ``sum b (1 - GIoU) / B`` for boxes, where b is
    the probability that the teacher gives an anchor's likeliest class, and B its sum. (CrossKD
    divides by a number of chosen positions, which needs labels.)
    """

    watched = {"head": "head"}
    needs_classes = True
    prefix = "loss_distill_dense"

    def check(self, student, teacher):
        for detector, whose in ((student, "student"), (teacher, "teacher")):
            submodule(
                detector, "head", whose, "cls_score", "bbox_pred", "cls_subnet", "bbox_subnet"
            )
            if not all(hasattr(detector, name) for name in PARTS):
                raise Unfit(f"the {whose}, a {type(detector).__name__}, is no dense detector")
        equal([type(d.box2box_transform).__name__ for d in (student, teacher)], "the box transform")
        levels = self._levels(student, teacher)
        check_anchors(student.anchor_generator, teacher.anchor_generator, levels)

    def _levels(self, student: nn.Module, teacher: nn.Module):
        return common_levels(student.head_in_features, teacher.head_in_features, self.pairs)

    def predictions(
        self, teacher: nn.Module, calls: Dict[str, Any], maps: List[torch.Tensor]
    ) -> Tuple[Predictions, Predictions]:
        """
        Args:
            maps: those of the teacher that its head takes.

        Returns:
            What is compared with the teacher's predictions, by the student's levels, and these.
        """
        with torch.no_grad():
            return calls["head"].output, teacher.head(maps)

    def sides(self, student: nn.Module, teacher: nn.Module) -> List[Tuple[nn.Module, List[int]]]:
        """Who made the two predictions, and the places of the shared classes there."""
        return [(student, self.classes.student), (teacher, self.classes.teacher)]

    def terms(self, student, teacher, calls, maps):
        own = [maps[name] for name in teacher.head_in_features]
        both = self.predictions(teacher, calls, own)
        found = dict(self._compare(student, teacher, *both))
        confidences = {name: c.logits[1].sigmoid().amax(1) for name, c in found.items()}
        total = sum(b.sum() for b in confidences.values()).clamp_min(EPSILON)
        return {
            f"{self.prefix}_cls": {n: quality_focal(*c.logits) / total for n, c in found.items()},
            f"{self.prefix}_reg": {
                n: giou_distance(*c.boxes, confidences[n]) / total for n, c in found.items()
            },
        }

    def _compare(
        self, student: nn.Module, teacher: nn.Module, s_out: Predictions, t_out: Predictions
    ) -> Iterator[Tuple[str, _Compared]]:
        sides, levels = self.sides(student, teacher), list(self._levels(student, teacher))
        both = {
            j: [crop(s_out[k][i].float(), t_out[k][j].float()) for k in (0, 1)]
            for _, i, j in levels
        }
        anchors = _anchors(teacher, {j: deltas[1] for j, (_, deltas) in both.items()})
        for name, _, j in levels:
            logits, deltas = both[j]
            yield name, _Compared(
                tuple(of_classes(_flat(x, d.num_classes), c) for x, (d, c) in zip(logits, sides)),
                tuple(
                    d.box2box_transform.apply_deltas(_flat(x, 4), anchors[j])
                    for x, (d, _) in zip(deltas, sides)
                ),
            )


def _flat(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, A * size, H, W) -> (R, size), as Detectron2 orders anchors."""
    n, _, h, w = x.shape
    return x.view(n, -1, size, h, w).permute(0, 3, 4, 1, 2).reshape(-1, size)


def _anchors(detector: nn.Module, maps: Dict[int, torch.Tensor]) -> Dict[int, torch.Tensor]:
    """
    Anchors (R, 4) of all images, by level.

    Args:
        maps: (N, C, H, W) of some levels; only their sizes are read.
    """
    like = next(iter(maps.values()))
    of_levels = [like[:, :, :1, :1]] * len(detector.head_in_features)
    for level, x in maps.items():
        of_levels[level] = x
    # in one call: each waits for a GPU once for every level
    found = detector.anchor_generator(of_levels)
    return {level: found[level].tensor.to(x).repeat(len(x), 1) for level, x in maps.items()}
