"""The non-local block: relations between the positions of a feature map."""

import math
from typing import Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import NaiveSyncBatchNorm, get_norm
from torch import nn

AFFINITIES = ("dot_product", "embedded_gaussian")
NORMS = ("BN", "SyncBN", "naiveSyncBN", "GN", "")


class NonLocalBlock(nn.Module):
    """
    r = x + norm(W y), where y sums up what every position sees of all others (Wang et al., CVPR
    2018, as changed by the paper's released code). Starts as the identity.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        key_stride: int,
        *,
        affinity: str = "dot_product",
        norm: str = "BN",
    ):
        """
        Args:
            channels: C of the map.
            width: k, of the embeddings theta, phi and g.
            key_stride: max-pooling of phi and g.
            affinity: "dot_product" or "embedded_gaussian".
            norm: one of Detectron2's names in ``NORMS``; "" for none. "naiveSyncBN" is its SyncBN
                that also runs on CPUs.
        """
        super().__init__()
        self.key_stride = key_stride
        self.affinity = affinity
        self.theta = nn.Conv2d(channels, width, 1)
        self.phi = nn.Conv2d(channels, width, 1)
        self.g = nn.Conv2d(channels, width, 1)
        self.out = nn.Conv2d(width, channels, 1)
        if norm == "GN":  # Detectron2's own wants a multiple of 32 channels
            self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        else:
            self.norm = get_norm(norm, channels)
        last = self.out if self.norm is None else self.norm
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        theta, phi, g = self.embed(x)
        if self.affinity == "dot_product":
            y = relation(phi, g) @ theta
        else:
            q, k, v = (t.transpose(1, 2).unsqueeze(1) for t in (theta, phi, g))
            y = F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1).transpose(1, 2)
        return self.add(x, y)

    def embed(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """theta (N, k, H*W), and phi and g at n keys (N, k, n)."""
        window = pooling_window(self.key_stride, *x.shape[-2:])
        phi, g = (F.max_pool2d(conv(x), window).flatten(2) for conv in (self.phi, self.g))
        return self.theta(x).flatten(2), phi, g

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """r, from x and y (N, k, H*W)."""
        y = self.out(y.unflatten(2, x.shape[-2:]))
        return x + (y if self.norm is None else self.norm(y))

    def is_fused(self) -> bool:
        """Whether the fused loss can do what this block does."""
        norm = self.norm
        # the others' statistics are over all processes
        others = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
        fused = norm is None or (isinstance(norm, nn.BatchNorm2d) and not isinstance(norm, others))
        return self.affinity == "dot_product" and fused


def relation(phi: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """
    ``g phi^T / n``, (N, k, k), from phi and g at n keys (N, k, n).

    Without softmax the product ``g f^T`` with the affinity ``f = theta^T phi / n`` is associative:
    ``y = (g phi^T / n) theta``, and the (H W) x n matrix f is never formed.
    """
    return g @ phi.transpose(1, 2) / phi.shape[2]


def pooling_window(key_stride: int, height: int, width: int) -> Tuple[int, int]:
    """The window of the keys' max-pooling: a map may be smaller than its stride."""
    return min(key_stride, height), min(key_stride, width)
