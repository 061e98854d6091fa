"""
Dense heads: RetinaNet and FCOS, whose maps are compared as they are, or in CrossKD's way.

Shape legend: N images, A anchors of a position, K classes of one side, S that both know, H x W
positions, R of them and their anchors at a level, of all images.
"""

from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import nn

from ...distillers.heads import EPSILON, giou_distance, quality_focal
from ..features import crop
from .base import HEAD_REGISTRY, HeadPair, Unfit, check_anchors, common_levels, equal, part

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
            part(detector, "head", whose, "cls_score", "bbox_pred", "cls_subnet", "bbox_subnet")
            if not all(hasattr(detector, name) for name in PARTS):
                raise Unfit(f"the {whose}, a {type(detector).__name__}, is no dense detector")
        equal([type(d.box2box_transform).__name__ for d in (student, teacher)], "the box transform")
        levels = self._levels(student, teacher)
        check_anchors(student.anchor_generator, teacher.anchor_generator, levels)

    def _levels(self, student: nn.Module, teacher: nn.Module):
        return common_levels(student.head_in_features, teacher.head_in_features, self.pairs)

    def predicted(
        self, student: nn.Module, teacher: nn.Module, calls: Dict[str, Any]
    ) -> Predictions:
        """What is compared with the teacher's predictions, by the student's levels."""
        return calls["head"].output

    def sides(self, student: nn.Module, teacher: nn.Module) -> List[Tuple[nn.Module, List[int]]]:
        """Who made the two predictions, and the places of the shared classes there."""
        return [(student, self.classes.student), (teacher, self.classes.teacher)]

    def terms(self, student, teacher, calls, maps):
        with torch.no_grad():
            wanted = teacher.head([maps[name] for name in teacher.head_in_features])
        found = dict(
            self._compare(student, teacher, self.predicted(student, teacher, calls), wanted)
        )
        beliefs = {name: c.logits[1].sigmoid().amax(1) for name, c in found.items()}
        total = sum(b.sum() for b in beliefs.values()).clamp_min(EPSILON)
        return {
            f"{self.prefix}_cls": {n: quality_focal(*c.logits) / total for n, c in found.items()},
            f"{self.prefix}_box": {
                n: giou_distance(*c.boxes, beliefs[n]) / total for n, c in found.items()
            },
        }

    def _compare(
        self, student: nn.Module, teacher: nn.Module, ours: Predictions, theirs: Predictions
    ) -> Iterator[Tuple[str, _Compared]]:
        sides = self.sides(student, teacher)
        for name, i, j in self._levels(student, teacher):
            logits, deltas = (crop(ours[k][i].float(), theirs[k][j].float()) for k in (0, 1))
            anchors = _anchors(teacher, deltas[1], j)
            yield name, _Compared(
                tuple(_flat(x, d.num_classes)[:, c] for x, (d, c) in zip(logits, sides)),
                tuple(
                    d.box2box_transform.apply_deltas(_flat(x, 4), anchors)
                    for x, (d, _) in zip(deltas, sides)
                ),
            )


@HEAD_REGISTRY.register()
class CrossHead(DenseHead):
    """
    CrossKD: the student's features from within its head go through the rest of the teacher's frozen
    head, and what comes out is compared with the teacher's own predictions. So the student's
    predictions learn from the labels alone.

    Both heads' features have equal channels there, before the last of the convolutions that both
    have (of four, as the authors' configs of RetinaNet), or where there is one only, in front of
    the head. The authors' code also gives the student's features the mean and deviation of the
    teacher's there, channel by channel; this one does not.
    """

    watched = {"head": "head"}
    prefix = "loss_distill_cross"

    def check(self, student, teacher):
        super().check(student, teacher)
        names = ("cls_subnet", "bbox_subnet")
        depth = min(len(_convolutions(d.head, names[0])) for d in (student, teacher)) - 1
        if len(self._levels(student, teacher)) < max(
            len(d.head_in_features) for d in (student, teacher)
        ):
            raise Unfit("CrossKD needs the same levels in both heads")
        equal(
            [
                _convolutions(d.head, names[0])[max(depth, 0)][1].in_channels
                for d in (student, teacher)
            ],
            "channels of the features that cross over",
        )
        # the last module before the next convolution
        places = {
            n: [_convolutions(d.head, n)[depth][0] for d in (student, teacher)] for n in names
        }
        self.places = {n: there for n, (_, there) in places.items()}
        if depth > 0:
            self.watched_often = {n: f"head.{n}.{here - 1}" for n, (here, _) in places.items()}

    def predicted(self, student, teacher, calls):
        inputs = list(calls["head"].inputs[0])
        rests = {n: teacher.head.get_submodule(n)[place:] for n, place in self.places.items()}
        maps = {n: [c.output for c in calls[n]] if n in calls else inputs for n in rests}
        logits = [
            teacher.head.cls_score(rests["cls_subnet"](x.float())) for x in maps["cls_subnet"]
        ]
        deltas = [
            teacher.head.bbox_pred(rests["bbox_subnet"](x.float())) for x in maps["bbox_subnet"]
        ]
        return logits, deltas

    def sides(self, student, teacher):
        return [(teacher, self.classes.teacher)] * 2


def _convolutions(head: nn.Module, subnet: str) -> List[Tuple[int, nn.Module]]:
    """Convolutions of a subnet, each with its place in it."""
    layers = head.get_submodule(subnet)
    if not isinstance(layers, nn.Sequential):
        raise Unfit(f"the head's '{subnet}' is a {type(layers).__name__}, no sequence of layers")
    found = [(i, x) for i, x in enumerate(layers) if isinstance(x, nn.Conv2d)]
    if not found:
        raise Unfit(f"the head's '{subnet}' has no convolution")
    return found


def _flat(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, A * size, H, W) -> (R, size), as Detectron2 orders anchors."""
    n, _, h, w = x.shape
    return x.view(n, -1, size, h, w).permute(0, 3, 4, 1, 2).reshape(-1, size)


def _anchors(detector: nn.Module, like: torch.Tensor, level: int) -> torch.Tensor:
    """Anchors (R, 4) of all images at a level of the size of a map (N, C, H, W)."""
    maps = [like[:, :, :1, :1]] * len(detector.head_in_features)  # only their sizes are read
    maps[level] = like
    return detector.anchor_generator(maps)[level].tensor.to(like).repeat(len(like), 1)
