"""TF32, which a GPU may round the inputs of matrix products to, on a machine without one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skd.distillers.structured.precision import products_like_convolutions

from .test_fused import level, of_one, plain_masked_feature, plain_non_local

aten = torch.ops.aten
# which arguments of a product a GPU rounds: not what is added to it
FACTORS = {
    aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2),
    aten.baddbmm_: (1, 2), aten.convolution: (0, 1), aten.convolution_backward: (0, 1, 2),
}  # fmt: skip


def to_tf32(x):
    """Round to TF32: of 23 bits of mantissa 10 are left, to the nearest."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def cut_to_tf32(x):
    """The same without rounding, as tensor cores read what nobody has rounded for them."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


class EmulatedTF32(TorchDispatchMode):
    def __init__(self, shorten=to_tf32):
        super().__init__()
        self.shorten, self.products = shorten, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args = list(args)
        for i in FACTORS.get(func.overloadpacket, ()):
            self.products.add(func.overloadpacket)
            args[i] = self.shorten(args[i])
        return func(*args, **(kwargs or {}))


def test_the_emulation_rounds():
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -3.0 - 2**-12])
    assert to_tf32(x).tolist() == [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -3.0]
    with EmulatedTF32():
        y = torch.full((1, 2, 2), 1 + 2**-12)
        assert torch.equal(y @ y, torch.full((1, 2, 2), 2.0))
        assert torch.equal(torch.baddbmm(y, y, y), 2 + y)


def results(net, term, student, teacher):
    """Value of one term, and its gradients by name."""
    net.zero_grad()
    student = student.clone().requires_grad_()
    value = term(student, teacher)
    value.backward()
    # copies: what moves or rounds the net does the same to its gradients
    grads = {n: p.grad.double().clone() for n, p in net.named_parameters() if p.grad is not None}
    return value.item(), {"map": student.grad.double(), **grads}


def errors(found, expected):
    """Relative errors of the value and of the map's gradient, and the largest of a parameter's."""
    floor = 1e-3 * max(g.norm() for g in expected[1].values())
    grads = {n: (found[1][n] - g).norm() / (g.norm() + floor) for n, g in expected[1].items()}
    return abs(found[0] / expected[0] - 1), grads.pop("map").item(), max(grads.values()).item()


# of the value, of the map's gradient, and of a parameter's: where inputs are rounded, and cut
ROUNDED, CUT = (1e-4, 1e-2, 3e-2), (1e-3, 2e-2, 1e-1)


@pytest.mark.parametrize("shorten,bounds,times", [(to_tf32, ROUNDED, 1.5), (cut_to_tf32, CUT, 2)])
@pytest.mark.parametrize("term", ["non_local", "masked_feature"])
def test_the_error_of_tf32_is_bounded(term, shorten, bounds, times):
    """It is also about that of plain convolutions with the same inputs."""
    torch.manual_seed(0)
    net = level(64, 64, non_local_width={4: 16})
    for parameter in net.parameters():  # of the size that training has
        parameter.data.div_(parameter[0].numel() ** 0.5 * 0.5)
    student, teacher = (torch.randn(2, 64, 24, 32).double() for _ in range(2))
    function = of_one(term, net)
    plain = {"non_local": plain_non_local, "masked_feature": plain_masked_feature}[term]
    expected = results(net, function, student, teacher)
    net.float()
    with EmulatedTF32(shorten) as emulated:
        rounded = results(net, function, student.float(), teacher.float())
    assert {aten.bmm, aten.baddbmm_} <= emulated.products
    with EmulatedTF32(shorten):
        convolutions = results(
            net, lambda *maps: plain(net, *maps), student.float(), teacher.float()
        )
    of_fused, of_plain = errors(rounded, expected), errors(convolutions, expected)
    assert 1e-7 < of_fused[0] and all(own < bound for own, bound in zip(of_fused, bounds))
    assert all(own < times * other for own, other in zip(of_fused, of_plain))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("term", ["non_local", "masked_feature"])
def test_the_error_on_a_gpu_is_bounded(term, tf32, monkeypatch):
    """
    The error against float64 is bounded, with TF32 from below, too, where the GPU has it. Whether
    its libraries round or cut is not known.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    torch.manual_seed(0)
    net = level(64, 64, non_local_width={4: 16})
    for parameter in net.parameters():
        parameter.data.div_(parameter[0].numel() ** 0.5 * 0.5)
    student, teacher = (torch.randn(2, 64, 24, 32).double() for _ in range(2))
    expected = results(net, of_one(term, net), student, teacher)
    net.float().cuda()
    value, grads = results(net, of_one(term, net), student.float().cuda(), teacher.float().cuda())
    found = errors((value, {n: g.cpu() for n, g in grads.items()}), expected)
    bounds = CUT if tf32 else (1e-5, 1e-4, 1e-3)
    assert all(error < bound for error, bound in zip(found, bounds)), found
    if tf32 and torch.cuda.get_device_capability() >= (8, 0):
        assert found[1] > 1e-4, found  # more than fp32's bound: these products are in TF32


def switches():
    matmul = torch.backends.cuda.matmul
    return (
        matmul.allow_tf32,
        getattr(matmul, "fp32_precision", None),
        torch.get_float32_matmul_precision(),
    )


@pytest.fixture
def restored():
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("products", [None, "highest", "high", "medium"])
def test_products_follow_the_switch_of_convolutions(restored, convolutions, products):
    torch.backends.cudnn.allow_tf32 = convolutions
    if products:
        torch.set_float32_matmul_precision(products)
    before = switches()
    with pytest.raises(KeyError):
        with products_like_convolutions(torch.device("cuda")):
            assert torch.backends.cuda.matmul.allow_tf32 == convolutions
            raise KeyError
    assert switches() == before
    with products_like_convolutions(torch.device("cpu")):
        assert switches() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="since torch 2.9"
)
@pytest.mark.parametrize("products,convolutions", [("tf32", "ieee"), ("ieee", "tf32")])
def test_they_follow_the_new_switches_too(products, convolutions):
    """The old switches, once the new ones say something else, refuse to be read."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision, conv.fp32_precision = products, convolutions
    try:
        with products_like_convolutions(torch.device("cuda")):
            assert matmul.fp32_precision == convolutions
        assert matmul.fp32_precision == products
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
