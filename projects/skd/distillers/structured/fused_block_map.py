"""
What is large of a non-local block, for the loss in ``fused_non_local.py``: its map is read once for
the moments that the block depends on, and once more for what their gradients make of it.
"""

import itertools
from typing import Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F

from ..base import at_least_fp32
from .fused_residual import add_product, add_sum, chunks
from .non_local import pooling_window


class BlockMap:
    """
    What is large of a non-local block, chunk by chunk.

    Attributes:
        centered: Theta x - Theta mean, (N, k, P).
    """

    def __init__(self, x: torch.Tensor, k: int, key_stride: int):
        """``x``: (N, C, H, W)."""
        self.k = k
        self.width, self.window = x.shape[3], pooling_window(key_stride, *x.shape[2:])
        self.count = x.shape[2] // self.window[0] * (x.shape[3] // self.window[1])  # of keys
        self.x = x.flatten(2)
        self.keys: List[Tuple[torch.Tensor, torch.Tensor]] = []  # and which positions they were

    def _chunks(self) -> Iterator[Tuple[slice, slice, bool]]:
        """Images and positions, and whether they are the images' first. No window is cut."""
        images, columns = chunks(self.x, self.window[0] * self.width)
        for rows, positions in itertools.product(images, columns):
            yield rows, positions, positions.start == 0

    def read(
        self,
        theta: torch.Tensor,
        inner: torch.Tensor,
        inner_bias: torch.Tensor,
        minus_mean: torch.Tensor,
        relation: torch.Tensor,
        cross: Optional[torch.Tensor],
    ) -> None:
        """
        Args:
            theta: Theta.
            inner, inner_bias: phi and g as one, (2 k, C) and (2 k,).
            minus_mean: - Theta mean, (N, k, 1).
            relation: is filled, (N, k, k).
            cross: is filled with ``theta x^T / P``, where theta has no mean, (N, k, C). With it
                ``cov = theta theta^T / P = cross Theta^T``.
        """
        n, _, positions = self.x.shape
        self.inner, self.centered = inner, theta.new_empty(n, self.k, positions)
        for rows, columns, first in self._chunks():
            chunk, centered = (
                at_least_fp32(self.x[rows, :, columns]),
                self.centered[rows, :, columns],
            )
            matrices = theta.expand(len(chunk), -1, -1), inner.expand(len(chunk), -1, -1)
            torch.baddbmm(minus_mean[rows], matrices[0], chunk, out=centered)
            if cross is not None:
                add_product(cross[rows], centered, chunk, first=first, factor=1 / positions)
            found = (matrices[1] @ chunk).unflatten(2, (-1, self.width))
            keys, chosen = F.max_pool2d(found, self.window, return_indices=True)
            # the bias after pooling: a constant moves no maximum
            keys = keys.flatten(2).add_(inner_bias[:, None])
            phi, g = keys.chunk(2, dim=1)
            add_product(relation[rows], g, phi, first=first, factor=1 / self.count)
            self.keys.append((keys, chosen.flatten(2)))

    def backward(
        self,
        d_relation: torch.Tensor,
        d_inner: torch.Tensor,
        d_inner_bias: torch.Tensor,
        d_map: Optional[torch.Tensor] = None,
        d_mean: Optional[torch.Tensor] = None,
        to_map: Optional[torch.Tensor] = None,
    ) -> None:
        """
        Args:
            d_relation: (N, k, k).
            d_inner: is filled, (N, 2 k, C).
            d_inner_bias: is filled, (N, 2 k).
            d_map: gradient of the map, (N, C, P), that what goes through the moments is added to;
                None if it is not wanted.
            d_mean: (N, C).
            to_map: what makes of P times theta its gradient's part of the map's, (N, C, k).
        """
        share = 1 / self.x.shape[2]
        if d_map is not None:
            d_map.add_(d_mean[:, :, None], alpha=share)
        for (rows, columns, first), (keys, chosen) in zip(self._chunks(), self.keys):
            chunk, d_keys = at_least_fp32(self.x[rows, :, columns]), torch.empty_like(keys)
            (phi, g), (d_phi, d_g) = keys.chunk(2, dim=1), d_keys.chunk(2, dim=1)
            add_product(d_phi, d_relation[rows].mT, g.mT, first=True, factor=1 / self.count)
            add_product(d_g, d_relation[rows], phi.mT, first=True, factor=1 / self.count)
            add_sum(d_inner_bias[rows], d_keys, first=first)
            # before pooling: zero but for the positions that were the maxima
            d_found = chunk.new_zeros(*keys.shape[:2], chunk.shape[2]).scatter_(2, chosen, d_keys)
            add_product(d_inner[rows], d_found, chunk, first=first)
            if d_map is None:
                continue
            into = d_map[rows, :, columns]
            into.baddbmm_(self.inner.t().expand(len(chunk), -1, -1), d_found)
            if to_map is not None:
                into.baddbmm_(
                    to_map[rows, :, : self.k], self.centered[rows, :, columns], alpha=share
                )
