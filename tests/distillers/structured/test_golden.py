"""
The loss against what the authors' released code gave for inputs that anyone can rebuild
(tests/golden/released_loss.json: numbers only). Beside the equations' tests, which hold the code
to this project's own reading of them.

Every tensor is filled by its flat index i, ``scale * sin(0.7 i + phase)``; level l = 0..4 and
layer k = 0..13 give the phases.
"""

import json
import os

import pytest
import torch
from detectron2.layers import ShapeSpec

from skd.distillers import StructuredDistiller
from tests.helpers import ROOT

with open(os.path.join(ROOT, "tests", "golden", "released_loss.json")) as f:
    GOLDEN = json.load(f)
LAYERS = [
    "feature_adapter", "channel_adapter", "spatial_adapter",
    "student_non_local.theta", "student_non_local.phi", "student_non_local.g",
    "student_non_local.out", "student_non_local.norm",
    "teacher_non_local.theta", "teacher_non_local.phi", "teacher_non_local.g",
    "teacher_non_local.out", "teacher_non_local.norm",
    "non_local_adapter",
]  # fmt: skip


def wave(shape, scale, phase):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * torch.sin(0.7 * index + phase)).view(shape)


def make(case):
    """The distiller in float64 with the layers' numbers, and both networks' maps."""
    names = [f"p{i}" for i in range(len(case["strides"]))]
    distiller = StructuredDistiller(preset=case["setting"])
    spec = [ShapeSpec(channels=case["channels"], stride=s) for s in case["strides"]]
    distiller.bind({name: (s, s) for name, s in zip(names, spec)})
    distiller.double()
    student, teacher = {}, {}
    for i, (name, size) in enumerate(zip(names, case["sizes"])):
        shape = (case["images"], case["channels"], *size)
        student[name] = wave(shape, 1.0, 0.3 + i).requires_grad_()
        teacher[name] = wave(shape, 1.5, 0.9 + 1.3 * i)
        for k, layer in enumerate(LAYERS):
            layer = distiller.levels[name].get_submodule(layer)
            with torch.no_grad():
                layer.weight.copy_(wave(layer.weight.shape, 0.2, 1 + i + 0.1 * k))
                layer.bias.copy_(wave(layer.bias.shape, 0.1, 2 + i + 0.1 * k))
    return distiller, student, teacher


@pytest.fixture(params=GOLDEN, ids=lambda case: f"{case['setting']}-{case['sizes'][0]}")
def case(request):
    return request.param


def close(value, expected):
    return value == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_values_and_gradients_are_those_of_the_released_code(case):
    distiller, student, teacher = make(case)
    terms = distiller(student, teacher)
    at = [c + s for c, s in zip(case["loss_at_channel"], case["loss_at_spatial"])]
    for term, expected in (("am", case["loss_am"]), ("at", at), ("nl", case["loss_nl"])):
        levels = terms[f"loss_distill_structured_{term}"].values()
        assert close([loss.item() for loss in levels], expected), term
    sum(loss for levels in terms.values() for loss in levels.values()).backward()
    for i, (name, x) in enumerate(student.items()):
        first = x.grad.flatten()[:4].tolist()
        # of gradients that come out of a cancellation, the digits of their terms count
        scale = case["student_gradient_norm"][i]
        expected = pytest.approx(case["student_gradient_first"][i], rel=1e-12, abs=1e-12 * scale)
        assert first == expected, name
        assert x.grad.norm().item() == pytest.approx(scale, rel=1e-11), name
        for layer, (norm, *_) in case["parameter_gradient_norm"][i].items():
            weight = distiller.levels[name].get_submodule(layer).weight
            assert weight.grad.norm().item() == pytest.approx(norm, rel=1e-9), (name, layer)
