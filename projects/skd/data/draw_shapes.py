"""
The images of the built-in dataset, see :mod:`skd.data.shapes`.

Every image is drawn from its own seed with integer arithmetic only where pixels are made, so that
the same pixels come out on every machine.
"""

import json
import logging
import math
import os
import shutil
import tempfile
from typing import Dict, List, Optional, Tuple

import cv2
import numpy as np

from .shapes import SHAPES_CLASSES, SIDE, SPLITS

logger = logging.getLogger(__name__)

MAX_OBJECTS = 8
MIN_VISIBLE = 0.5  # of an object's pixels, below which nothing may cover it any further


def _sine(turn: float) -> float:
    # libm may differ in the last bit between machines; six digits are the same everywhere
    return round(math.sin(2 * math.pi * turn), 6)


def _outline(name: str) -> List[Tuple[float, float]]:
    """Vertices of a class's outline on the unit circle, in order."""

    def ring(n, radius=lambda i: 1.0):
        return [(radius(i) * _sine(i / n + 0.25), radius(i) * _sine(i / n)) for i in range(n)]

    if name == "cross":
        a = 0.3
        return [
            (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a),
            (-a, -a), (-a, -1), (a, -1), (a, -a), (1, -a), (1, a),
        ]  # fmt: skip
    if name == "star":
        return ring(10, lambda i: 1.0 if i % 2 == 0 else 0.42)
    return ring({"disk": 32, "triangle": 3, "square": 4, "pentagon": 5}[name])


def _noise(rng, cell: int, channels: int) -> np.ndarray:
    """Smooth noise with features of ``cell`` pixels: uint8 (SIDE, SIDE, channels)."""
    n = SIDE // cell + 2
    grid = rng.integers(0, 256, (n, n, channels), dtype=np.uint8)
    # the EXACT variant is the one OpenCV promises to be the same on every machine
    big = cv2.resize(grid, (n * cell, n * cell), interpolation=cv2.INTER_LINEAR_EXACT)
    return big[:SIDE, :SIDE].reshape(SIDE, SIDE, channels)


def _color(rng, shifted: bool) -> np.ndarray:
    """A BGR color, int32 (3,). Warm and bright in the usual domain, cold and dark in the other."""
    low, high = ((0, 90, 110), (110, 256, 256)), ((90, 0, 0), (256, 170, 110))
    a, b = high if shifted else low
    return np.array([rng.integers(x, y) for x, y in zip(a, b)], dtype=np.int32)


def _texture(rng, shifted: bool) -> np.ndarray:
    """Shading of one object around zero: int32 (SIDE, SIDE, 1)."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.int32)
    period, phase = int(rng.integers(4, 9)), int(rng.integers(0, 8))
    kind = int(rng.integers(0, 3))
    if kind == 0:
        t = np.zeros_like(x)
    elif shifted:  # checkers and dots
        t = (
            ((x + phase) // period + y // period) % 2
            if kind == 1
            else ((x % period) * (y % period) < period)
        )
    else:  # stripes
        t = ((x if kind == 1 else x + y) + phase) // period % 2
    return (t.astype(np.int32) * 70 - 35)[:, :, None]


def _background(rng, shifted: bool) -> np.ndarray:
    """int32 (SIDE, SIDE, 3): smooth noise under a clutter of lines and blots without a class."""
    base = 40 + _noise(rng, 32, 3).astype(np.int32) // 2 + _noise(rng, 8, 1).astype(np.int32) // 4
    if shifted:
        base = 255 - base // 2
    canvas = np.clip(base, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(4, 12))):
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        p, q = rng.integers(0, SIDE, 2), rng.integers(0, SIDE, 2)
        p, q = (int(p[0]), int(p[1])), (int(q[0]), int(q[1]))
        if rng.integers(0, 2):
            cv2.line(canvas, p, q, color, int(rng.integers(1, 4)))
        else:
            axes = (int(rng.integers(2, 14)), int(rng.integers(1, 3)))
            cv2.ellipse(canvas, p, axes, int(rng.integers(0, 180)), 0, 360, color, -1)
    return canvas.astype(np.int32)


def _object_mask(rng, category: int) -> np.ndarray:
    """bool (SIDE, SIDE): one shape of random size, place, turn and aspect."""
    # two objects out of three are small: that is where detectors lose their points
    radius = int(rng.integers(8, 17)) if rng.integers(0, 3) else int(rng.integers(17, 37))
    aspect = int(rng.integers(75, 101)) / 100
    turn = int(rng.integers(-30, 31)) / 360
    cx, cy = (int(v) for v in rng.integers(radius // 2, SIDE - radius // 2, 2))
    cos, sin = _sine(turn + 0.25), _sine(turn)
    points = []
    for x, y in _outline(SHAPES_CLASSES[category]):
        x, y = x * radius, y * radius * aspect
        points.append((round(cx + x * cos - y * sin), round(cy + x * sin + y * cos)))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(mask, [np.array(points, np.int32)], 1)
    return mask.astype(bool)


def _polygons(mask: np.ndarray) -> List[List[float]]:
    """
    Outer contours of a mask as COCO polygons, which have no holes. OpenCV joins pixel centers,
    which would shrink the object by half a pixel all around; on a fourfold canvas it is an eighth.
    """
    zoom = 4
    big = np.kron(mask.astype(np.uint8), np.ones((zoom, zoom), np.uint8))
    contours, _ = cv2.findContours(big, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        contour = cv2.approxPolyDP(contour, zoom // 2, True)
        if len(contour) >= 3 and cv2.contourArea(contour) >= zoom * zoom:
            polygons.append([(float(v) + 0.5) / zoom for v in contour.reshape(-1)])
    return polygons


def draw(split: str, index: int) -> Tuple[np.ndarray, List[Dict]]:
    """
    Draw one image.

    Args:
        split: a key of :data:`SPLITS`.
        index: from 0 to the split's number of images.

    Returns:
        The BGR image, uint8 of shape (SIDE, SIDE, 3), and its COCO annotations (without ids).
        ``bbox`` is XYWH in pixels and, like the polygons, of the visible part of the object.
    """
    seed, _, shifted = SPLITS[split]
    rng = np.random.default_rng([seed, index])
    image = _background(rng, shifted)
    masks: List[np.ndarray] = []
    visible: List[np.ndarray] = []
    categories: List[int] = []
    for _ in range(int(rng.integers(3, MAX_OBJECTS + 1))):
        category = int(rng.integers(0, len(SHAPES_CLASSES)))
        mask = _object_mask(rng, category)
        color, texture = _color(rng, shifted), _texture(rng, shifted)
        left = [v & ~mask for v in visible]
        if mask.sum() < 24 or any(v.sum() < MIN_VISIBLE * m.sum() for v, m in zip(left, masks)):
            continue
        visible = left + [mask]
        masks.append(mask)
        categories.append(category)
        edge = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        image = np.where(mask[..., None], color + texture, image)
        image = np.where(edge[..., None], image * 2 // 3, image)
    image = image + rng.integers(-12, 13, image.shape, dtype=np.int32)

    annotations = []
    for category, mask in zip(categories, visible):
        polygons = _polygons(mask)
        ys, xs = np.nonzero(mask)
        x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        if polygons:
            annotations.append(
                {
                    "category_id": category + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": polygons,
                }
            )
    return np.clip(image, 0, 255).astype(np.uint8), annotations


def write_split(split: str, folder: str, num_images: Optional[int] = None) -> None:
    """
    Draw a split into ``folder/images`` and ``folder/annotations.json``, unless it is there.

    The folder appears in one rename, so that several processes may start at once and an
    interrupted run leaves nothing half done.

    Args:
        split: a key of :data:`SPLITS`.
        folder: to make.
        num_images: draw only so many; by default all of the split's.
    """
    if os.path.isdir(folder):
        return
    num_images = num_images or SPLITS[split].num_images
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    logger.info("Drawing %d images of %s into %s ...", num_images, split, folder)
    part = tempfile.mkdtemp(prefix=".part-", dir=os.path.dirname(folder))
    try:
        os.chmod(part, 0o755)  # mkdtemp's own mode would lock other users out
        os.makedirs(os.path.join(part, "images"))
        images, annotations = [], []
        for index in range(num_images):
            pixels, found = draw(split, index)
            name = f"{index + 1:06d}.png"
            if not cv2.imwrite(os.path.join(part, "images", name), pixels):
                raise OSError(f"Could not write {os.path.join(part, 'images', name)}")
            images.append({"id": index + 1, "file_name": name, "width": SIDE, "height": SIDE})
            for a in found:
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **a})
        categories = [{"id": i + 1, "name": n} for i, n in enumerate(SHAPES_CLASSES)]
        with open(os.path.join(part, "annotations.json"), "w") as f:
            json.dump({"images": images, "annotations": annotations, "categories": categories}, f)
        try:
            os.rename(part, folder)
        except OSError:
            if not os.path.isdir(folder):  # otherwise another process was faster, with the same
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
