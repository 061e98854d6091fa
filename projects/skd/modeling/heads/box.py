"""The box head of an R-CNN: classes and boxes, on the student's proposals."""

from typing import List, Sequence

import torch
from detectron2.structures import Instances
from torch import nn

from ...config.naming import called
from ...distillers.base import constant
from ...distillers.heads import soft_cross_entropy, weighted_l1
from .base import HEAD_REGISTRY, HeadPair, Unfit, equal, of_classes, submodule
from .roi import ROI, roi_heads


def _key(name: str) -> str:
    """What the user calls a setting of Detectron2's box predictor."""
    return called(f"MODEL.ROI_BOX_HEAD.{name}")


@HEAD_REGISTRY.register()
class BoxHead(HeadPair):
    """
    ``StandardROIHeads`` in both: the teacher classifies and refines the proposals that the student
    learns from, but for those whose label is a class that it does not know. Classes that one side
    lacks are left out before the softmax; the deltas of a class count as much as the teacher
    believes in it.

    Shape legend: M proposals of all images, K classes of one side, S that both know.
    """

    watched = {
        "heads": ROI, "pooler": f"{ROI}.box_pooler", "predictor": f"{ROI}.box_predictor"
    }  # fmt: skip
    needs_classes = True

    def check(self, student, teacher):
        names = ("box_pooler", "box_head", "box_predictor", "box_in_features")
        found = roi_heads(student, teacher, *names)
        for heads, whose in zip(found, ("student", "teacher")):
            if isinstance(heads.box_predictor, nn.ModuleList):
                raise Unfit(f"{type(heads).__name__} has several stages, each with its own boxes")
            parts = "cls_score", "bbox_pred", "box2box_transform"
            predictor = submodule(heads, "box_predictor", f"{whose}'s roi_heads", *parts)
            if len(predictor.box2box_transform.weights) != 4:
                raise Unfit(f"the {whose}'s boxes are rotated")
        if any(getattr(h.box_predictor, "use_sigmoid_ce", False) for h in found):
            raise Unfit(
                f"a box predictor has no softmax over its classes ({_key('USE_SIGMOID_CE')})"
            )
        if all(h.num_classes > 1 for h in found):  # with one class, its box is that of all
            agnostic = [h.box_predictor.bbox_pred.out_features == 4 for h in found]
            equal(agnostic, f"whether all classes share a box ({_key('CLS_AGNOSTIC_BBOX_REG')})")

    def terms(self, student, teacher, calls, maps):
        boxes = calls["pooler"].inputs[1]
        t_heads = teacher.get_submodule(ROI)
        with torch.no_grad():
            pooled = t_heads.box_pooler([maps[n] for n in t_heads.box_in_features], boxes)
            t_logits, t_deltas = t_heads.box_predictor(t_heads.box_head(pooled))
        s_logits, s_deltas = (x.float() for x in calls["predictor"].output)
        s_heads = student.get_submodule(ROI)
        if len(self.classes.student) < s_heads.num_classes:  # to choose waits for the device, once
            known = self._known(calls["heads"].output[0], s_heads.num_classes)
            s_logits, s_deltas, t_logits, t_deltas = (
                x[known] for x in (s_logits, s_deltas, t_logits, t_deltas)
            )
        s = _shared(s_logits, self.classes.student)  # (M, S + 1)
        t = _shared(t_logits, self.classes.teacher)
        settings = self.settings
        classes = soft_cross_entropy(s, t, settings.background_weight, settings.temperature)
        d_s = _deltas(s_deltas, self.classes.student, s_heads)
        d_t = _deltas(t_deltas, self.classes.teacher, t_heads)
        confidence = t.softmax(1)[:, :-1]  # (M, S)
        if d_s.shape[1] == 1:
            confidence = confidence.sum(1, keepdim=True)
        box = weighted_l1(d_s, d_t, confidence)
        return {"loss_distill_box_cls": {"all": classes}, "loss_distill_box_reg": {"all": box}}

    def _known(self, proposals: Sequence[Instances], num_classes: int) -> torch.Tensor:
        """
        Indices of those whose class the teacher has, or that are background; any other it would
        take for that.
        """
        kinds = torch.cat([x.gt_classes for x in proposals])
        known = {*self.classes.student, num_classes}
        table = tuple(k in known for k in range(num_classes + 1))
        return constant(table, torch.bool, kinds.device)[kinds].nonzero().flatten()


def _shared(logits: torch.Tensor, classes: List[int]) -> torch.Tensor:
    """(M, K + 1) -> (M, S + 1), the background last."""
    return of_classes(logits, [*classes, logits.shape[1] - 1])


def _deltas(deltas: torch.Tensor, classes: List[int], heads: nn.Module) -> torch.Tensor:
    """(M, K * 4) -> (M, S, 4); (M, 4), of all classes -> (M, 1, 4)."""
    by_class = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
    if by_class.shape[1] > 1 or heads.num_classes == 1:
        by_class = of_classes(by_class, classes)
    weights = tuple(heads.box_predictor.box2box_transform.weights)
    return by_class / constant(weights, deltas.dtype, deltas.device)
