"""The region proposal network: objectness and box deltas at the student's anchors."""

from typing import Dict, List

import torch

from ...distillers.base import constant
from ...distillers.heads import soft_binary_cross_entropy, weighted_l1
from ..features import crop
from .base import HEAD_REGISTRY, HeadPair, check_anchors, common_levels, submodule

RPN = "proposal_generator"


@HEAD_REGISTRY.register()
class RPNHead(HeadPair):
    """
    Detectron2's ``RPN`` in both, with the same anchors at a level: there anchor i of a position is
    the same box for both, and their predictions are compared as they are.

    Shape legend: N images, A anchors of a position, H x W positions.
    """

    watched = {"head": f"{RPN}.rpn_head"}

    def check(self, student, teacher):
        s_rpn, t_rpn = (
            submodule(d, RPN, w, "in_features", "rpn_head", "anchor_generator", "box2box_transform")
            for d, w in ((student, "student"), (teacher, "teacher"))
        )
        generators = [m.anchor_generator for m in (s_rpn, t_rpn)]
        check_anchors(*generators, common_levels(s_rpn.in_features, t_rpn.in_features, self.pairs))

    def terms(self, student, teacher, calls, maps):
        s_rpn, t_rpn = student.get_submodule(RPN), teacher.get_submodule(RPN)
        with torch.no_grad():
            wanted = t_rpn.rpn_head([maps[name] for name in t_rpn.in_features])
        scales = [list(m.box2box_transform.weights) for m in (s_rpn, t_rpn)]
        classes: Dict[str, torch.Tensor] = {}
        boxes: Dict[str, torch.Tensor] = {}
        for name, i, j in common_levels(s_rpn.in_features, t_rpn.in_features, self.pairs):
            (logits, deltas), (t_logits, t_deltas) = (
                [x[k].float() for x in predicted]
                for predicted, k in ((calls["head"].output, i), (wanted, j))
            )
            s, t = crop(logits, t_logits)  # (N, A, H, W)
            classes[name] = soft_binary_cross_entropy(s, t, self.settings.background_weight)
            d_s, d_t = (_by_anchor(d, scale) for d, scale in zip(crop(deltas, t_deltas), scales))
            boxes[name] = weighted_l1(d_s, d_t, t.sigmoid())
        return {"loss_distill_rpn_cls": classes, "loss_distill_rpn_reg": boxes}


def _by_anchor(deltas: torch.Tensor, scale: List[float]) -> torch.Tensor:
    """(N, A * 4, H, W) -> (N, A, H, W, 4), without the factors that a detector trains with."""
    n, _, h, w = deltas.shape
    factors = constant(tuple(scale), deltas.dtype, deltas.device)
    return deltas.view(n, -1, 4, h, w).permute(0, 1, 3, 4, 2) / factors
