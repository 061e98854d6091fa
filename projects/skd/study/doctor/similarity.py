"""
How alike two feature maps are, whatever their channels mean: centred kernel alignment.

S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, equation
5, with a linear kernel and the positions of all images as examples.

Shape legend: N images, C channels, H x W positions of a feature map.
"""

import itertools
from typing import Dict, Tuple

import torch

Offset = Tuple[int, int]
OFFSETS = tuple(itertools.product((-1, 0, 1), repeat=2))


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """
    Args:
        x, y: (N, C_x, H, W) and (N, C_y, H, W).

    Returns:
        0 for maps that have nothing in common, 1 for those that are equal up to a rotation and a
        scale of their channels; 0 where one of them is constant.
    """
    x, y = (_examples(t) for t in (x, y))
    cross = torch.linalg.matrix_norm(y.T @ x) ** 2
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (cross / own).item() if own > 0 else 0.0


def _examples(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().double().movedim(1, -1).flatten(0, -2)  # (N H W, C)
    return x - x.mean(0)


def shifted_cka(x: torch.Tensor, y: torch.Tensor) -> Dict[Offset, float]:
    """
    :func:`linear_cka` of two maps of which one is moved by up to a position.

    Args:
        x, y: as there, H and W at least 3.

    Returns:
        By (rows, columns) by which ``y`` lies further down and right than ``x``.
    """
    h, w = x.shape[-2:]
    inner = x[..., 1 : h - 1, 1 : w - 1]
    return {
        (i, j): linear_cka(inner, y[..., 1 + i : h - 1 + i, 1 + j : w - 1 + j]) for i, j in OFFSETS
    }
