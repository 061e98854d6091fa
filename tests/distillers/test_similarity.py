import numpy as np
import pytest
import torch

from skd.distillers.similarity import POSITIONS, MapSimilarity, linear_cka, on_grid


def maps(seed=0, channels=4, size=8):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


def reference(x, y):
    """Equation 5 with kernel matrices, in NumPy."""
    x, y = (t.double().numpy().transpose(0, 2, 3, 1).reshape(-1, t.shape[1]) for t in (x, y))
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def test_it_is_the_equation():
    x, y = maps(0).double(), maps(1, channels=6).double()
    assert linear_cka(x, y).item() == pytest.approx(reference(x, y), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_in_fp32_it_is_the_equation_too(scale):
    """Whose sums of fourth powers would overflow."""
    x, y = maps(0), maps(1, channels=6)
    assert linear_cka(scale * x, y + 10).item() == pytest.approx(reference(x, y), rel=1e-4)


def test_rotations_scales_and_offsets_of_the_channels_do_not_matter():
    x = maps()
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    y = 3 * torch.einsum("ij,njhw->nihw", rotation, x) + 7
    assert linear_cka(x, y).item() == pytest.approx(1, abs=1e-5)
    for constant in (1.0, 0.1, 0.0):  # the mean of 0.1 is rounded
        assert linear_cka(x, torch.full_like(x, constant)) == 0
        assert linear_cka(torch.full_like(x, 1.1), torch.full_like(x, constant)) == 0


@pytest.mark.parametrize(
    "n,height,width,step", [(2, 16, 16, 1), (2, 200, 336, 6), (1, 1, 9000, 3), (5000, 4, 4, 4)]
)
def test_positions_are_every_so_many_th(n, height, width, step):
    x = torch.arange(height * width).view(1, 1, height, width).expand(n, 3, -1, -1)
    found = on_grid(x)
    assert torch.equal(found, x[..., ::step, ::step])
    assert found[:, 0].numel() <= max(POSITIONS, n)
    assert step == 1 or x[:, 0, :: step - 1, :: step - 1].numel() > POSITIONS


def pair(dtype=torch.float32):
    """Maps of a student with 4 channels and a teacher with 6, too many positions and too few."""
    student = {"p2": maps(0, size=80), "p6": maps(1, size=2)}
    teacher = {"p2": torch.cat([2 * student["p2"], maps(2, 2, 80)], 1), "p6": maps(3, 6, 2)}
    return ({k: x.to(dtype) for k, x in side.items()} for side in (student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_levels_are_measured_in_fp32_on_a_grid(dtype):
    student, teacher = pair(dtype)
    alike = MapSimilarity()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alike.measure({k: x.requires_grad_() for k, x in student.items()}, teacher)
    grid = (x["p2"].double()[..., ::2, ::2] for x in (student, teacher))
    found = alike.scalars()
    assert found.keys() == {"cka_p2"} and found["cka_p2"].dtype == torch.float32
    assert found["cka_p2"].item() == pytest.approx(linear_cka(*grid).item(), rel=1e-5)
    assert not found["cka_p2"].requires_grad


def test_maps_that_are_not_finite_leave_it_as_it_was():
    """The trainer stops at a logged number that is not finite."""
    student, teacher = pair()
    alike, broken = MapSimilarity(), {k: x * torch.inf for k, x in student.items()}
    alike.measure(broken, teacher)
    assert alike.levels["p2"] == 0
    alike.measure(student, teacher)
    before = alike.levels["p2"]
    alike.measure(broken, teacher)
    assert alike.levels["p2"] == before > 0
