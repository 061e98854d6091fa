"""
How alike two feature maps are, whatever their channels mean: centered kernel alignment.

S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, equation
5, with a linear kernel and the positions of all images as examples.

Shape legend: N images, C channels, H x W positions of a feature map.
"""

import torch


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
