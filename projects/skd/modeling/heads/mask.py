"""The mask head of Mask R-CNN, on the student's foreground boxes."""

import torch

from ...distillers.base import constant
from ...distillers.heads import soft_binary_cross_entropy
from .base import HEAD_REGISTRY, HeadPair, Unfit, equal, submodule
from .roi import ROI, roi_heads


@HEAD_REGISTRY.register()
class MaskHead(HeadPair):
    """
    Mask R-CNN's mask heads: the student's foreground boxes, and of each the mask of its own class,
    with the teacher's probabilities in place of the label's zeros and ones.
    """

    watched = {"head": f"{ROI}.mask_head", "logits": f"{ROI}.mask_head.predictor"}
    needs_classes = True

    def check(self, student, teacher):
        found = roi_heads(student, teacher, "mask_pooler", "mask_head", "mask_in_features")
        for heads, whose in zip(found, ("student", "teacher")):
            submodule(heads, "mask_head", f"{whose}'s roi_heads", "layers", "predictor")
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
        t_heads = teacher.get_submodule(ROI)
        kinds = torch.cat([x.gt_classes for x in instances])
        table = dict(zip(self.classes.student, self.classes.teacher))
        places = tuple(table.get(k, -1) for k in range(student.roi_heads.num_classes))
        teacher_kinds = constant(places, kinds.dtype, kinds.device)[kinds]
        with torch.no_grad():
            boxes = [x.proposal_boxes for x in instances]
            pooled = t_heads.mask_pooler([maps[n] for n in t_heads.mask_in_features], boxes)
            t_logits = t_heads.mask_head.layers(pooled)
        found = logits, kinds, t_logits, teacher_kinds
        if -1 in places:  # to choose waits for the device, once
            known = (teacher_kinds >= 0).nonzero().flatten()
            found = [x[known] for x in found]
        s, t = _of_class(*found[:2]), _of_class(*found[2:])
        return {"loss_distill_mask": {"all": soft_binary_cross_entropy(s, t)}}


def _of_class(masks: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(M, K or 1, H, W) and (M,) -> (M, H, W)."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[torch.arange(len(masks), device=masks.device), classes]
