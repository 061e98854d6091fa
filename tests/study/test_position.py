"""Misaligned feature maps."""

import pytest
import torch
from torch.nn import functional as F

from skd.study.doctor.position import OFFSETS, Position, moved


def image(seed, size=128):
    """Smooth, as photographs are."""
    noise = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return 255 * F.interpolate(noise, size=(size, size), mode="bilinear")[0]


def network(x):
    """(C, H, W) of stride 4, as most networks make them: the middle of a position at its corner."""
    filters = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.conv2d(x[None], filters, stride=4, padding=2).relu()[0]


def position(offset=(0, 0), images=4):
    found = Position()
    for seed in range(images):
        x = image(seed)
        found.add(torch.roll(network(x), offset, (1, 2)), x, stride=4)
    return found


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_moved_map_is_found(offset):
    best, factor = moved(position(offset).explained())
    assert best == (-offset[0], -offset[1])
    assert factor > 1.12 if any(offset) else factor == 1


def test_what_lies_beyond_the_image_is_left_out():
    x = image(0)
    padded = F.pad(network(x), (0, 8, 0, 8), value=100.0)
    one, other = Position(), Position()
    one.add(network(x), x, stride=4), other.add(padded, x, stride=4)
    assert one.explained() == other.explained()


def test_too_little_to_tell():
    assert Position().explained() == {}
    assert moved({}) == ((0, 0), 1.0)
    small = Position()
    small.add(torch.rand(8, 4, 4), image(0), stride=4)  # all border
    assert small.explained() == {}
    assert moved({(0, 0): 0.01, (0, 1): 0.04}) == ((0, 0), 1.0)  # it explains next to nothing
