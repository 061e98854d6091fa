"""Losses between heads' predictions, against their equations in loops and float64."""

import math

import pytest
import torch

from skd.distillers.heads import (
    giou_distance,
    quality_focal,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    weighted_l1,
)

GENERATOR = torch.Generator().manual_seed(4)


def random(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def softmax(logits):
    powers = [math.exp(x) for x in logits]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_cross_entropy_is_the_weighted_one_of_chen_et_al(temperature):
    student, teacher = 3 * random(5, 4), 3 * random(5, 4)
    total = 0.0
    for s, t in zip((student / temperature).tolist(), (teacher / temperature).tolist()):
        w = [1, 1, 1, 1.5]  # the background is the last
        total -= sum(w * p * math.log(q) for w, p, q in zip(w, softmax(t), softmax(s)))
    found = soft_cross_entropy(student, teacher, 1.5, temperature)
    assert found.item() == pytest.approx(temperature**2 * total / 5)


def test_of_two_classes_it_is_the_binary_one():
    student, teacher = random(6), random(6)
    two = [torch.stack([x, torch.zeros_like(x)], 1) for x in (student, teacher)]
    expected = soft_cross_entropy(*two, background_weight=1.5)
    torch.testing.assert_close(soft_binary_cross_entropy(student, teacher, 1.5), expected)


def test_weighted_l1():
    student, teacher, weight = random(2, 3, 4), random(2, 3, 4), random(2, 3).abs()
    total = 0.0
    for i in range(2):
        for j in range(3):
            total += weight[i, j].item() * sum(
                abs(a - b) for a, b in zip(student[i, j].tolist(), teacher[i, j].tolist())
            )
    found = weighted_l1(student, teacher, weight).item()
    assert found == pytest.approx(total / weight.sum().item())
    assert weighted_l1(student, teacher, 0 * weight) == 0


def test_quality_focal_is_that_of_crosskd():
    student, teacher = 2 * random(3, 4), 2 * random(3, 4)
    total = 0.0
    for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist()):
        s, t = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
        total -= abs(t - s) * ((1 - t) * math.log(1 - s) + t * math.log(s))
    assert quality_focal(student, teacher).item() == pytest.approx(total)
    assert quality_focal(teacher, teacher) == 0


def test_giou_distance():
    first = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1.0]], dtype=torch.float64)
    second = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3], [3, 3, 4, 4.0]], dtype=torch.float64)
    # 1; 1/7 - 2/9; 0 - 14/16
    expected = 2 * 0 + 3 * (1 - 1 / 7 + 2 / 9) + 5 * (1 + 14 / 16)
    weight = torch.tensor([2, 3, 5], dtype=torch.float64)
    assert giou_distance(first, second, weight).item() == pytest.approx(expected)
    empty = torch.zeros(2, 4, requires_grad=True)
    loss = giou_distance(empty, torch.zeros(2, 4), torch.ones(2))
    loss.backward()
    assert loss.isfinite() and empty.grad.isfinite().all()
    second[1] = 1.0  # a teacher's box without an area says nothing
    assert giou_distance(first, second, weight).item() == pytest.approx(5 * (1 + 14 / 16))


def test_they_are_least_where_the_two_agree():
    teacher = random(5, 4)
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher, 1.0).backward()
    assert student.grad.abs().max() < 1e-12
    student.grad = None
    soft_binary_cross_entropy(student, teacher).backward()
    assert student.grad.abs().max() < 1e-12


def test_of_nothing_they_are_zero_with_a_gradient():
    nothing = torch.zeros(0, 4, requires_grad=True)
    sums = soft_cross_entropy(nothing, nothing), soft_binary_cross_entropy(nothing, nothing)
    sums += (weighted_l1(nothing, nothing, torch.zeros(0)),)
    assert all(x == 0 for x in sums)
    sum(sums).backward()


def test_they_are_finite_for_sure_predictions():
    far = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = soft_cross_entropy(far, -far.detach()) + soft_binary_cross_entropy(far, -far.detach())
    loss.backward()
    assert loss.isfinite() and far.grad.isfinite().all()
