"""CrossKD: the student's features within a dense head go through the rest of the teacher's."""

from typing import List, Tuple

from torch import nn

from .base import HEAD_REGISTRY, Unfit, equal
from .dense import DenseHead


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
