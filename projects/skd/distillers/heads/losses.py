"""
Shape legend: M boxes or anchors, C classes and the background.

G. Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS
2017: the classification. G. Hinton et al., arXiv 1503.02531: soft targets and their temperature.
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
    Chen et al., equation 3: the mean over the boxes of ``- sum_c w_c P_t(c) log P_s(c)``, where w
    is 1, and larger for the background; with a temperature T of both, times T^2.

    Args:
        student, teacher: logits (M, C + 1), the background last.
        background_weight: of the last.
        temperature: of both softmaxes.
    """
    if not len(student):
        return student.sum() * 0
    weights = torch.ones_like(student[0])
    weights[-1] = background_weight
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

    Chen et al.'s regression (equation 4) compares both with the labels, and is no pull towards the
    teacher; this one needs no labels, and is the plain distance.

    Args:
        student, teacher: box deltas (..., 4).
        weight: (...), 0 or above.
    """
    distance = (student - teacher).abs().sum(-1)
    return (weight * distance).sum() / weight.sum().clamp_min(EPSILON)
