"""
Losses between what two detectors' heads predict. Each returns a scalar, with a gradient for the
student's side.

Shape legend: M boxes or anchors, C classes and the background.

G. Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS
2017: the classification. G. Hinton et al., arXiv 1503.02531: soft targets and their temperature.
X. Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv 2006.04388, and J. Wang et al.,
"CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024, arXiv 2306.11369:
dense heads.
"""

import torch
import torch.nn.functional as F

EPSILON = 1e-6


def soft_cross_entropy(
    student: torch.Tensor,
    teacher: torch.Tensor,
    background_weight: float = 1.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    Chen et al.'s weighted cross entropy: the mean over the boxes of
    ``- sum_c w_c P_t(c) log P_s(c)``, where w is 1, and larger for the background; with a
    temperature T of both, times T^2.

    Args:
        student, teacher: logits (M, C + 1), the background last.
        background_weight: of the last.
        temperature: of both softmaxes.
    """
    if not len(student):
        return student.sum() * 0
    weights = torch.ones_like(student[0])
    weights[-1].fill_(background_weight)
    soft = F.softmax(teacher / temperature, 1) * weights
    loss = -(soft * F.log_softmax(student / temperature, 1)).sum(1).mean()
    return loss * temperature**2


def soft_binary_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, background_weight: float = 1.0
) -> torch.Tensor:
    """
    The same for two classes, object and background, given by one logit: the mean of
    ``- p_t log p_s - w (1 - p_t) log(1 - p_s)``.

    Args:
        student, teacher: logits of any, equal shape.
        background_weight: w.
    """
    if not student.numel():
        return student.sum() * 0
    p = teacher.sigmoid()
    loss = p * F.logsigmoid(student) + background_weight * (1 - p) * F.logsigmoid(-student)
    return -loss.mean()


def weighted_l1(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """
    ``sum_i w_i |d_s,i - d_t,i|_1 / sum_i w_i``: where the teacher sees an object, its box.

    Chen et al.'s teacher bounded regression compares both with the labels, because a teacher's box
    may be worse than the student's; this one needs no labels, and is the plain distance.

    Args:
        student, teacher: box deltas (..., 4).
        weight: (...), 0 or above.
    """
    distance = (student - teacher).abs().sum(-1)
    return (weight * distance).sum() / weight.sum().clamp_min(EPSILON)


def quality_focal(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    The quality focal loss of Li et al. with beta 1, as CrossKD's code takes it for classes:
    ``- |p_t - p_s| ((1 - p_t) log(1 - p_s) + p_t log p_s)``, p a sigmoid, summed over all.

    Args:
        student, teacher: logits of any, equal shape.
    """
    entropy = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    return ((teacher.sigmoid() - student.sigmoid()).abs() * entropy).sum()


def giou_distance(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """
    ``sum_i w_i (1 - GIoU(b_s,i, b_t,i))``, of the teacher's boxes that have an area.

    Args:
        student, teacher: boxes (M, 4), XYXY.
        weight: (M,), 0 or above.
    """
    low, high = torch.maximum(student, teacher)[:, :2], torch.minimum(student, teacher)[:, 2:]
    inner = (high - low).clamp_min(0).prod(1)
    union = _area(student) + _area(teacher) - inner
    outer = torch.cat(
        [torch.minimum(student, teacher)[:, :2], torch.maximum(student, teacher)[:, 2:]], 1
    )
    outer = _area(outer).clamp_min(EPSILON)
    giou = inner / union.clamp_min(EPSILON) - (outer - union) / outer
    return (weight * (_area(teacher) > 0) * (1 - giou)).sum()


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
