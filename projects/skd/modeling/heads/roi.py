"""The heads of an R-CNN: classes and boxes on the student's proposals, and masks on its boxes."""

from typing import List

import torch
from torch import nn

from ...config.naming import called
from ...distillers.heads import soft_binary_cross_entropy, soft_cross_entropy, weighted_l1
from .base import HEAD_REGISTRY, HeadPair, Unfit, equal, part

ROI = "roi_heads"


def _key(name: str) -> str:
    """What the user calls a setting of Detectron2's box predictor."""
    return called(f"MODEL.ROI_BOX_HEAD.{name}")


def _heads(student: nn.Module, teacher: nn.Module, *attributes: str) -> List[nn.Module]:
    found = [part(d, ROI, w, *attributes) for d, w in ((student, "student"), (teacher, "teacher"))]
    for heads in found:
        if isinstance(getattr(heads, "box_predictor", None), nn.ModuleList):
            raise Unfit(f"{type(heads).__name__} has several stages, each with boxes of its own")
    return found


@HEAD_REGISTRY.register()
class BoxHead(HeadPair):
    """
    ``StandardROIHeads`` in both: the teacher classifies and refines the proposals that the student
    learns from. Classes that one side lacks are left out before the softmax; the deltas of a class
    count as much as the teacher believes in it.

    Shape legend: M proposals of all images, K classes of one side, S that both know.
    """

    watched = {"pooler": f"{ROI}.box_pooler", "predictor": f"{ROI}.box_predictor"}
    needs_classes = True

    def check(self, student, teacher):
        names = ("box_pooler", "box_head", "box_predictor", "box_in_features")
        found = _heads(student, teacher, *names)
        for heads, whose in zip(found, ("student", "teacher")):
            part(heads, "box_predictor", f"{whose}'s roi_heads", "cls_score", "bbox_pred")
        if any(getattr(h.box_predictor, "use_sigmoid_ce", False) for h in found):
            raise Unfit(
                f"a box predictor has no softmax over its classes ({_key('USE_SIGMOID_CE')})"
            )
        agnostic = [h.box_predictor.bbox_pred.out_features == 4 for h in found]
        equal(agnostic, f"whether all classes share a box ({_key('CLS_AGNOSTIC_BBOX_REG')})")

    def terms(self, student, teacher, calls, maps):
        boxes = calls["pooler"].inputs[1]
        theirs = teacher.get_submodule(ROI)
        with torch.no_grad():
            pooled = theirs.box_pooler([maps[n] for n in theirs.box_in_features], boxes)
            t_logits, t_deltas = theirs.box_predictor(theirs.box_head(pooled))
        s_logits, s_deltas = (x.float() for x in calls["predictor"].output)
        ours = student.get_submodule(ROI)
        s = _shared(s_logits, self.classes.student)  # (M, S + 1)
        t = _shared(t_logits, self.classes.teacher)
        settings = self.settings
        classes = soft_cross_entropy(s, t, settings.background_weight, settings.temperature)
        d_s = _deltas(s_deltas, self.classes.student, ours)
        d_t = _deltas(t_deltas, self.classes.teacher, theirs)
        belief = t.softmax(1)[:, :-1]  # (M, S)
        if d_s.shape[1] == 1:
            belief = belief.sum(1, keepdim=True)
        box = weighted_l1(d_s, d_t, belief)
        return {"loss_distill_roi_cls": {"all": classes}, "loss_distill_roi_box": {"all": box}}


def _shared(logits: torch.Tensor, classes: List[int]) -> torch.Tensor:
    """(M, K + 1) -> (M, S + 1), the background last."""
    return logits[:, [*classes, logits.shape[1] - 1]]


def _deltas(deltas: torch.Tensor, classes: List[int], heads: nn.Module) -> torch.Tensor:
    """(M, K * 4) -> (M, S, 4); (M, 4), of all classes -> (M, 1, 4)."""
    by_class = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
    if by_class.shape[1] > 1 or heads.num_classes == 1:
        by_class = by_class[:, classes]
    return by_class / deltas.new_tensor(list(heads.box_predictor.box2box_transform.weights))


@HEAD_REGISTRY.register()
class MaskHead(HeadPair):
    """
    Mask R-CNN's mask heads: the student's foreground boxes, and of each the mask of its own class,
    with the teacher's probabilities in place of the label's zeros and ones.
    """

    watched = {"head": f"{ROI}.mask_head", "logits": f"{ROI}.mask_head.predictor"}
    needs_classes = True

    def check(self, student, teacher):
        found = _heads(student, teacher, "mask_pooler", "mask_head", "mask_in_features")
        for heads, whose in zip(found, ("student", "teacher")):
            part(heads, "mask_head", f"{whose}'s roi_heads", "layers", "predictor")
            if heads.mask_pooler is None:
                raise Unfit(f"the {whose}'s mask head has no pooler")
        sides = [
            h.mask_pooler.output_size[0] * h.mask_head.deconv.stride[0]
            for h in found
            if hasattr(h.mask_head, "deconv")
        ]
        if len(sides) == 2:
            equal(sides, "the masks' side in pixels")

    def terms(self, student, teacher, calls, maps):
        instances, logits = calls["head"].inputs[1], calls["logits"].output.float()
        theirs = teacher.get_submodule(ROI)
        kinds = torch.cat([x.gt_classes for x in instances])
        table = {s: t for s, t in zip(self.classes.student, self.classes.teacher)}
        mapped = kinds.new_tensor(
            [table.get(int(k), -1) for k in range(student.roi_heads.num_classes)]
        )
        teacher_kinds = mapped[kinds]
        with torch.no_grad():
            boxes = [x.proposal_boxes for x in instances]
            pooled = theirs.mask_pooler([maps[n] for n in theirs.mask_in_features], boxes)
            t_logits = theirs.mask_head.layers(pooled)
        known = teacher_kinds >= 0
        s = _of_class(logits[known], kinds[known])
        t = _of_class(t_logits[known], teacher_kinds[known])
        return {"loss_distill_roi_mask": {"all": soft_binary_cross_entropy(s, t)}}


def _of_class(masks: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(M, K or 1, H, W) and (M,) -> (M, H, W)."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[torch.arange(len(masks), device=masks.device), classes]
