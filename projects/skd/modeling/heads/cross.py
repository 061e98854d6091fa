"""CrossKD: the student's features within a dense head go through the rest of the teacher's."""

from typing import List, Sequence, Tuple

import torch
from torch import nn

from .base import HEAD_REGISTRY, Unfit, equal, watch_calls
from .dense import DenseHead

SUBNETS = {"cls_subnet": "cls_score", "bbox_subnet": "bbox_pred"}  # and what comes behind each
EPSILON = 1e-6  # of the authors' code


@HEAD_REGISTRY.register()
class CrossHead(DenseHead):
    """
    CrossKD: the student's features from within its head go through the rest of the teacher's frozen
    head, and what comes out is compared with the teacher's own predictions. So the student's
    predictions learn from the labels alone.

    Both heads' features have equal channels there: before the activation in front of the last of
    the convolutions that both have (of four, as the authors' configs of RetinaNet), or where there
    is one only, in front of the head. As in the authors' code, the student's get the mean and the
    deviation of the teacher's, see :func:`align`.
    """

    watched = {"head": "head"}
    prefix = "loss_distill_cross"

    def check(self, student, teacher):
        super().check(student, teacher)
        detectors = student, teacher
        places = [(i, j) for _, i, j in self._levels(*detectors)]
        most = max(len(d.head_in_features) for d in detectors)
        if places != [(i, i) for i in range(most)]:
            raise Unfit("CrossKD needs the same levels in both heads")
        cuts = {n: _cuts([d.head for d in detectors], n) for n in SUBNETS}
        for n, both in cuts.items():
            for detector, cut in zip(detectors, both):
                _keep_what_crosses(detector.head, n, cut)
        self.cuts = {n: there for n, (_, there) in cuts.items()}
        self.watched_often = {n: f"head.{n}.{here - 1}" for n, (here, _) in cuts.items() if here}

    def predictions(self, teacher, calls, maps):
        names = {n: f"{n}.{cut - 1}" for n, cut in self.cuts.items() if cut}
        with torch.no_grad(), watch_calls(teacher.head, list(names.values())) as theirs:
            wanted = teacher.head(maps)
        found = []
        for n, last in SUBNETS.items():
            ours = [c.output for c in calls[n]] if n in calls else calls["head"].inputs[0]
            own = [c.output for c in theirs[names[n]]] if n in names else maps
            rest = teacher.head.get_submodule(n)[self.cuts[n] :]
            crossing = [align(x.float(), y) for x, y in zip(ours, own)]
            found.append([teacher.head.get_submodule(last)(rest(x)) for x in crossing])
        return tuple(found), wanted

    def sides(self, student, teacher):
        return [(teacher, self.classes.teacher)] * 2


def align(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    The student's features with the teacher's mean and standard deviation of each channel.

    Args:
        student, teacher: (N, C, H, W), over whose N, H and W these are.
    """
    (mean, std), (wanted_mean, wanted_std) = (
        (x.mean((0, 2, 3), True), x.std((0, 2, 3), correction=0, keepdim=True))
        for x in (student, teacher)
    )
    return (student - mean) / (std + EPSILON) * wanted_std + wanted_mean


def _cuts(heads: Sequence[nn.Module], subnet: str) -> List[int]:
    """
    How many layers of a subnet are in front of the cut, of each head's.

    Raises:
        Unfit: features of other channels would cross over.
    """
    both = [_convolutions(head, subnet) for head in heads]
    depth = min(map(len, both)) - 1
    channels = [convolutions[depth][1].in_channels for convolutions in both]
    equal(channels, f"channels of the features that cross over in '{subnet}'")
    return [_cut(head, subnet, depth) for head in heads]


def _cut(head: nn.Module, subnet: str, depth: int) -> int:
    """How many layers of a subnet are in front of the cut."""
    place = _convolutions(head, subnet)[depth][0]
    before = head.get_submodule(subnet)[place - 1] if place else None
    return place - (before is not None and _is_activation(before))


def _is_activation(module: nn.Module) -> bool:
    """One of torch's own, or derived from one; others are taken for layers."""
    return any(c.__module__ == "torch.nn.modules.activation" for c in type(module).__mro__)


def _keep_what_crosses(head: nn.Module, subnet: str, cut: int) -> None:
    """An activation in place would overwrite what is in front of it; its values are the same."""
    behind = head.get_submodule(subnet)[cut]
    if getattr(behind, "inplace", False):
        behind.inplace = False


def _convolutions(head: nn.Module, subnet: str) -> List[Tuple[int, nn.Module]]:
    """Convolutions of a subnet, each with its place in it."""
    layers = head.get_submodule(subnet)
    if not isinstance(layers, nn.Sequential):
        raise Unfit(f"the head's '{subnet}' is a {type(layers).__name__}, no sequence of layers")
    found = [(i, x) for i, x in enumerate(layers) if isinstance(x, nn.Conv2d)]
    if not found:
        raise Unfit(f"the head's '{subnet}' has no convolution")
    return found
