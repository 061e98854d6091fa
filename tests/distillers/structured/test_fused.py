"""The losses that keep no map for backward, against plain autograd."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec

from skd.distillers import StructuredDistiller
from skd.distillers.structured import fused_residual
from skd.distillers.structured import level as losses
from skd.distillers.structured.fused_attention import Attention
from skd.study.benchmark.cases import Loss

from .test_structured import difference_norm


def level(c_s=6, c_t=6, stride=4, **changes):
    torch.manual_seed(0)
    settings = {"non_local_width": {stride: 3}, "key_stride": {stride: 2}, "preset": "two_stage"}
    distiller = StructuredDistiller(**{**settings, **changes})
    spec = (ShapeSpec(channels=c_s, stride=stride), ShapeSpec(channels=c_t, stride=stride))
    distiller.bind({"p2": spec})
    for parameter in distiller.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return distiller.levels["p2"].double()


def maps(c_s=6, c_t=6, n=3, h=7, w=11, scale=1.0):
    g = torch.Generator().manual_seed(1)
    student, teacher = (
        scale * torch.randn(n, c, h, w, generator=g, dtype=torch.float64) for c in (c_s, c_t)
    )
    return student.requires_grad_(), teacher


def of_one(term, net):
    """A term at one level, as a function of both maps."""
    return lambda student, teacher: getattr(losses, term)([net], [student], [teacher])[0].in_graph()


def plain_norm(difference, level):
    """Of a difference (N, C, H, W), by the definition: as docs/method.md has it."""
    norms = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    if level.settings.reduction == "sum":
        return torch.linalg.vector_norm(norms)
    positions = difference.shape[-2] * difference.shape[-1]
    return norms.mean() * math.sqrt(2 * 800 * 1344 / (level.stride**2 * positions))


def plain_non_local(level, student, teacher):
    relation = level.non_local_adapter(level.student_non_local(student))
    difference = relation - level.teacher_non_local(teacher)
    return level.settings.weight_nl * plain_norm(difference, level)


def plain_masked_feature(level, student, teacher):
    from skd.distillers.attention import attention_mask, spatial_attention

    mask = attention_mask(
        spatial_attention(student).flatten(1), spatial_attention(teacher).flatten(1),
        level.settings.temperature, level.settings.mask_fusion,
    )  # fmt: skip
    difference = level.feature_adapter(student) - teacher
    root = mask.sqrt().view(len(teacher), 1, *teacher.shape[-2:])
    return level.settings.weight_am * plain_norm(difference * root, level)


def results(level, term, *inputs):
    """Value, gradients and state of one term."""
    level.zero_grad()
    inputs[0].grad = None
    before = {n: b.clone() for n, b in level.named_buffers()}
    value = term(*inputs)
    value.backward()
    grads = {n: p.grad.clone() for n, p in level.named_parameters() if p.grad is not None}
    after = {n: b.clone() for n, b in level.named_buffers()}
    for name, buffer in level.named_buffers():
        buffer.copy_(before[name])
    return value.detach(), {"map": inputs[0].grad.clone(), **grads}, after


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("norm", ["BN", ""])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("c_s,c_t,n", [(6, 6, 3), (4, 7, 1)])
def test_non_local_equals_plain_autograd(reduction, norm, training, c_s, c_t, n):
    net = level(c_s, c_t, reduction=reduction, non_local_norm=norm).train(training)
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)
    inputs = maps(c_s, c_t, n)
    actual = results(net, of_one("non_local", net), *inputs)
    expected = results(net, lambda *x: plain_non_local(net, *x), *inputs)
    for found, wanted in zip(actual[1:], expected[1:]):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=name)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_masked_feature_equals_plain_autograd(reduction):
    net = level(4, 7, reduction=reduction)
    inputs = maps(4, 7)
    actual = results(net, of_one("masked_feature", net), *inputs)
    expected = results(net, lambda *x: plain_masked_feature(net, *x), *inputs)
    torch.testing.assert_close(actual[:2], expected[:2], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "abs"])
def test_attention_equals_plain_autograd(pool):
    x = maps()[0]
    weights = torch.randn(3, 7, 11).double(), torch.randn(3, 6).double()
    space, channels = Attention.apply(x, x, pool)
    (actual,) = torch.autograd.grad((space * weights[0]).sum() + (channels * weights[1]).sum(), x)
    y = x.abs() if pool == "abs" else x
    plain = (y.mean(1) * weights[0]).sum() + (y.mean((2, 3)) * weights[1]).sum()
    torch.testing.assert_close(actual, torch.autograd.grad(plain, x)[0])


def test_maps_may_be_taken_in_any_chunks(monkeypatch):
    net, inputs = level(), maps(n=5)
    leaves = [inputs[0], *net.parameters()]
    expected = net(*inputs)
    whole = torch.autograd.grad(sum(expected.values()), leaves)
    for elements in (1, 6 * 10, 6 * 77, 2 * 6 * 77):
        monkeypatch.setitem(fused_residual.CHUNK_ELEMENTS, "cpu", elements)
        terms = net(*inputs)
        torch.testing.assert_close(terms, expected)
        torch.testing.assert_close(torch.autograd.grad(sum(terms.values()), leaves), whole)


@pytest.mark.parametrize("layout", ["channels_last", "cropped"])
def test_maps_may_lie_in_memory_in_any_way(layout):
    net, (student, teacher) = level(), maps()
    expected = net(student, teacher)
    (gradient,) = torch.autograd.grad(sum(expected.values()), student)

    def lay(x):
        if layout == "channels_last":
            return x.detach().contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.pad(x.detach(), (0, 3, 0, 2))[..., :7, :11]

    other = lay(student).requires_grad_()
    actual = net(other, lay(teacher))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(sum(actual.values()), other)[0], gradient)


def test_terms_may_be_weighted_apart_and_led_back_twice():
    net, (student, teacher) = level(), maps()
    terms = net(student, teacher)
    parts = {
        name: torch.autograd.grad(value, student, retain_graph=True)[0]
        for name, value in terms.items()
    }
    factors = dict(zip(terms, (2.0, 0.0, -3.0)))
    total = sum(factors[name] * value for name, value in terms.items())
    (whole,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(whole, sum(factors[n] * g for n, g in parts.items()))


@pytest.mark.parametrize("leaf", [True, False])
def test_a_second_backward_gives_the_same_again(leaf):
    net, (student, teacher) = level(), maps()
    total = sum(net(student if leaf else 1.0 * student, teacher).values())
    (expected,) = torch.autograd.grad(total, student, retain_graph=True)
    expected = expected.clone()
    for retain in (True, True, False):
        total.backward(retain_graph=retain)
    torch.testing.assert_close(student.grad, 3 * expected)
    once = {name: p.grad / 3 for name, p in net.named_parameters()}
    net.zero_grad()
    sum(net(student, teacher).values()).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, once[name], msg=name)


def test_nothing_is_made_for_backward_where_nobody_asks():
    net, (student, teacher) = level(), maps()
    expected = net(student, teacher)
    with torch.no_grad():
        for name, value in net(student, teacher).items():
            assert value.grad_fn is None
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_large_and_small_maps_are_computed_in_fp32(scale):
    """Variances of W y go with the sixth power of the maps."""
    net, (student, teacher) = level(), maps(scale=scale)
    expected = net(student, teacher)
    net.float()
    actual = net(student.detach().float().requires_grad_(), teacher.float())
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value.item(), rel=1e-3)


def test_maps_without_variance_have_finite_losses_and_gradients():
    """What rounding leaves of the variance may be below zero."""
    net = level(c_s=64, c_t=64).float()
    for _ in range(20):
        student, teacher = (torch.randn(1, 64, 1, 1).expand(1, 64, 3, 2) for _ in range(2))
        loss = of_one("non_local", net)(student.requires_grad_(), teacher)
        loss.backward()
        for x in (loss, *(p.grad for p in net.parameters() if p.grad is not None)):
            assert x.isfinite().all()


def test_sums_of_many_squares_keep_their_digits():
    """A plain fp32 norm of so many numbers is off by one in a thousand on a CPU."""
    x = torch.randn(2, 64, 300, 400)
    expected = x.double().norm().item()
    assert difference_norm(x, "sum").item() == pytest.approx(expected, rel=1e-6)
    zero = torch.zeros(64)
    kept = fused_residual.residual(
        [(torch.eye(64), x.flatten(2))], zero, torch.zeros_like(x).flatten(2)
    )
    assert kept.norms.norm().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("norm", ["BN", "", "GN"])
def test_levels_together_are_what_each_is_alone(norm):
    """Levels of other channels and widths, whose matrices are zero-padded, give what each gives."""
    shapes = {"p2": (6, 6, 3), "p3": (6, 6, 5), "p4": (4, 7, 2), "p5": (4, 7, 3)}
    strides = {name: 4 * 2**i for i, name in enumerate(shapes)}
    widths = {strides[name]: width for name, (*_, width) in shapes.items()}
    torch.manual_seed(0)
    distiller = StructuredDistiller(
        preset="two_stage", non_local_width=widths, non_local_norm=norm, reduction="mean"
    )
    distiller.bind(
        {
            n: [ShapeSpec(channels=c, stride=strides[n]) for c in cs]
            for n, (*cs, _) in shapes.items()
        }
    )
    for parameter in distiller.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    pairs = {n: maps(*cs, h=9 - i, w=7 + i) for i, (n, (*cs, _)) in enumerate(shapes.items())}
    student, teacher = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
    leaves = [*student.values(), *distiller.parameters()]
    buffers = {n: b.clone() for n, b in distiller.named_buffers()}
    terms = distiller(student, teacher)
    together = torch.autograd.grad(sum(x for t in terms.values() for x in t.values()), leaves)
    tracked = {n: b.clone() for n, b in distiller.named_buffers()}
    distiller.load_state_dict(buffers, strict=False)
    alone = {n: layers(*pairs[n]) for n, layers in distiller.levels.items()}
    for term, levels in terms.items():
        torch.testing.assert_close(levels, {n: alone[n][term] for n in levels})
    expected = torch.autograd.grad(sum(x for t in alone.values() for x in t.values()), leaves)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(tracked, dict(distiller.named_buffers()))


def test_a_step_starts_few_kernels():
    """A GPU is faster than its host can start them: their number is what a step takes."""
    fused, literal = Loss("cpu", size=(64, 64), channels=16).launches()
    assert fused <= 650 and fused < literal
