"""
Whether a feature map lies where its image says: what it tells of the image, as it is and moved.

At each position of a map, its channels are asked for what the image shows there: the colors and the
edges, both without what the surroundings have in common (linear regression, coefficient of
determination). A network that pads or resizes its images in another way tells more of the positions
beside.

Shape legend: C channels, H x W positions of a map, P positions of all images, F = 9 offsets, T what
is asked for: each color and two directions of edges.
"""

import itertools
from typing import Dict, Tuple

import torch
from torch.nn import functional as F

Offset = Tuple[int, int]
OFFSETS = tuple(itertools.product((-1, 0, 1), repeat=2))
# Positions at the border that are left out: for the offsets, and as their surroundings are cut off.
BORDER = 2
# Positions per channel that it takes to tell, and the part of the image that a map has to explain.
POSITIONS, EXPLAINED = 30, 0.05


class Position:
    """Gathers the maps of one level, image by image."""

    def __init__(self) -> None:
        self.positions = 0
        self._maps = self._both = self._squares = 0

    @torch.no_grad()
    def add(self, x: torch.Tensor, image: torch.Tensor, stride: int) -> None:
        """
        Args:
            x: (C, H, W); what lies beyond the image, because of padding, is left out.
            image: (3, h, w), or of other channels.
            stride: pixels of the image from one position of the map to the next.
        """
        shown = _shown(image.to(x.device), stride)
        h, w = (min(a, b) for a, b in zip(x.shape[-2:], shown.shape[-2:]))
        if min(h, w) <= 2 * BORDER:
            return
        x, shown = (_details(t[:, :h, :w].double()) for t in (x, shown))
        inner = _window(x, (0, 0)).T  # (P, C)
        asked = torch.stack([_window(shown, offset) for offset in OFFSETS]).flatten(0, 1).T
        self.positions += len(inner)
        self._maps = self._maps + inner.T @ inner  # (C, C)
        self._both = self._both + inner.T @ asked  # (C, F T)
        self._squares = self._squares + (asked**2).sum(0)  # (F T,)

    def explained(self) -> Dict[Offset, float]:
        """
        What part of the image's details the map explains, 0 to 1, by (rows, columns) by which the
        image is moved; empty if there is too little to tell.
        """
        if not self.positions or self.positions < POSITIONS * len(self._maps):
            return {}
        ridge = 1e-6 * self._maps.diagonal().mean() * torch.eye(len(self._maps)).to(self._maps)
        weights = torch.linalg.solve(self._maps + ridge, self._both)
        parts = (weights * self._both).sum(0) / self._squares.clamp_min(1e-12)
        return dict(zip(OFFSETS, parts.view(len(OFFSETS), -1).mean(1).tolist()))


def moved(explained: Dict[Offset, float]) -> Tuple[Offset, float]:
    """
    The offset by which a map lies beside its images.

    Args:
        explained: of :meth:`Position.explained`.

    Returns:
        Where it fits best, and how many times better than as it is; (0, 0) and 1 if it cannot be
        told.
    """
    best = max(explained, key=explained.get, default=(0, 0))
    if not explained or explained[best] < EXPLAINED:
        return (0, 0), 1.0
    return best, explained[best] / max(explained[0, 0], 1e-12)


def _shown(image: torch.Tensor, stride: int) -> torch.Tensor:
    """
    (T, H, W): means over what belongs to each position. Its middle is a quarter of the stride from
    the position's corner: networks have theirs at the corner, or up to three quarters further.
    """
    image = image.double()
    across = F.pad((image[..., :, 1:] - image[..., :, :-1]).abs().mean(0, keepdim=True), (0, 1))
    down = F.pad((image[..., 1:, :] - image[..., :-1, :]).abs().mean(0, keepdim=True), (0, 0, 0, 1))
    before = stride // 4
    padded = F.pad(torch.cat([image, across, down])[None], (before, 0, before, 0), mode="replicate")
    return F.avg_pool2d(padded, stride)[0]


def _details(x: torch.Tensor) -> torch.Tensor:
    return x - F.avg_pool2d(x[None], 3, 1, 1, count_include_pad=False)[0]


def _window(x: torch.Tensor, offset: Offset) -> torch.Tensor:
    """(., P): the positions that are not at the border, moved."""
    h, w = x.shape[-2:]
    (i, j), b = offset, BORDER
    return x[:, b + i : h - b + i, b + j : w - b + j].flatten(1)
