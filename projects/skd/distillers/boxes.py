"""Boxes of objects, and anchors, on the grid of a feature map."""

import math
from typing import List, Optional, Sequence

import torch

from .base import constant


def fill_boxes(
    boxes: List[torch.Tensor],
    like: torch.Tensor,
    stride: int,
    values: Optional[List[torch.Tensor]] = None,
    border: int = 0,
) -> torch.Tensor:
    """
    Draw boxes onto a map.

    Args:
        boxes: for each image (G, 4), XYXY in pixels.
        like: the feature map (N, C, H, W).
        stride: of the map, in pixels.
        values: what to fill each box with, (G,) for each image; default 1. Where boxes overlap the
            largest counts.
        border: cells added at the right and the bottom.

    Returns:
        (N, H, W), 0 outside of all boxes. A box covers every cell it touches.
    """
    n, _, h, w = like.shape
    x, y = torch.arange(w, device=like.device), torch.arange(h, device=like.device)
    drawn = []
    for i in range(n):
        low, high = grid(boxes[i], stride, border)
        inside_x = (x >= low[:, :1]) & (x < high[:, :1])  # (G, W)
        inside_y = (y >= low[:, 1:]) & (y < high[:, 1:])  # (G, H)
        inside = (inside_y[:, :, None] & inside_x[:, None]).to(like.dtype)  # (G, H, W)
        if values is not None:
            inside = inside * values[i].to(like)[:, None, None]
        drawn.append(inside.amax(0) if len(inside) else like.new_zeros(h, w))
    return torch.stack(drawn)


def make_anchors(
    like: torch.Tensor, stride: int, side: float, ratios: Sequence[float]
) -> torch.Tensor:
    """
    Anchors around the middle of each position, as Detectron2's anchor generator makes them.

    Args:
        like: the feature map (N, C, H, W).
        stride: of the map, in pixels.
        side: of the square with an anchor's area, in pixels.
        ratios: A of them, height / width.

    Returns:
        (H * W * A, 4), XYXY in pixels, of the map's type but in at least fp32.
    """
    kind = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
    sizes = [(math.sqrt(side**2 / ratio), ratio) for ratio in ratios]  # width, height / width
    shapes = tuple((-w / 2, -w * r / 2, w / 2, w * r / 2) for w, r in sizes)
    cells = constant(shapes, **kind)
    y, x = (torch.arange(stride / 2, n * stride, stride, **kind) for n in like.shape[-2:])
    y, x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
    return (corners + cells).view(-1, 4)


def grid(boxes: torch.Tensor, stride: int, border: int = 0):
    """First and one past the last cell of each box: two tensors (G, 2) of x and y."""
    return (boxes[:, :2] / stride).floor(), (boxes[:, 2:] / stride).ceil() + border
