import numpy as np
import pytest
import torch

from skd.study.doctor.similarity import linear_cka


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
    x, y = maps(0), maps(1, channels=6)
    assert linear_cka(x, y) == pytest.approx(reference(x, y), rel=1e-9)


def test_rotations_scales_and_offsets_of_the_channels_do_not_matter():
    x = maps()
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    y = 3 * torch.einsum("ij,njhw->nihw", rotation, x) + 7
    assert linear_cka(x, y) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, torch.ones_like(x)) == 0
