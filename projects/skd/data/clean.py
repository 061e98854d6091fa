"""
Which annotations are as they should be: fast, and strict. The others are looked at one by one.

Shape legend: B boxes, G polygons, P points of all polygons.
"""

from array import array
from typing import Any, Collection, Dict, Iterator, List, Mapping, Tuple

import numpy as np

Bounds = Tuple[float, float, float]  # an image's width and height, and how far away is too far
LEAST = 1e-5  # pixels of a box's side: Detectron2's filter_empty_instances drops smaller ones
CHUNK = 20_000  # annotations at a time, so that the arrays stay small


def not_clean(
    annotations: List[Dict[str, Any]], sizes: Mapping[Any, Bounds], categories: Collection[Any]
) -> Iterator[Dict[str, Any]]:
    """
    Yield, in their order, those with a reference that leads nowhere, a box, polygon or flag that is
    not as it should be, and those with keypoints or RLE, which this does not know.

    Args:
        annotations: entries whose ids have the right types; their other values are any.
        sizes: by the images' ids.
        categories: their ids.
    """
    for start in range(0, len(annotations), CHUNK):
        part = annotations[start : start + CHUNK]
        for i in sorted(_not_clean(part, sizes, categories)):
            yield part[i]


def _not_clean(part, sizes: Mapping[Any, Bounds], categories: Collection[Any]) -> Collection[int]:
    found, rows = set(), []
    # their fromlist() takes numbers only, and is many times as fast as numpy's reading of lists
    boxes, limits, points = array("d"), array("d"), array("d")
    counts, owners = [], []
    for i, annotation in enumerate(part):
        size, mask = sizes.get(annotation["image_id"]), annotation.get("segmentation")
        known = size is not None and annotation["category_id"] in categories
        flags = annotation.get("iscrowd") in (0, 1) and "keypoints" not in annotation
        box = annotation.get("bbox")
        if not (known and flags and type(box) is list and len(box) == 4):
            found.add(i)
            continue
        try:
            boxes.fromlist(box)
            limits.extend(size)
            rows.append(i)
            if mask and type(mask) is not list:
                found.add(i)
                continue
            for polygon in mask or ():
                if len(polygon) < 6 or len(polygon) % 2:
                    found.add(i)
                else:
                    points.fromlist(polygon)
                    counts.append(len(polygon) // 2)
                    owners.append(len(rows) - 1)
        except (TypeError, OverflowError):  # no list, or something else than numbers in it
            found.add(i)
    sides = np.frombuffer(limits).reshape(-1, 3)
    rows, owners = np.array(rows, dtype=np.int64), np.array(owners, dtype=np.int64)
    found.update(rows[~_good_boxes(np.frombuffer(boxes).reshape(-1, 4), sides)].tolist())
    if counts:
        good = _good_polygons(np.frombuffer(points), np.array(counts), sides[owners])
        found.update(rows[owners[~good]].tolist())
    return found


def _good_boxes(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """
    Which boxes (B, 4) have an area and are inside of their images (B, 3). What is nan compares as
    False. A side of exactly 1 may be JSON's ``true``.
    """
    x, y, w, h = boxes.T
    width, height, _ = sides.T
    area = (w > LEAST) & (h > LEAST) & (w != 1) & (h != 1)
    return area & (x >= 0) & (y >= 0) & (x + w <= width) & (y + h <= height)


def _good_polygons(points: np.ndarray, counts: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """
    Which polygons surely have a pixel in their image: not outside of it, no line, and not far away.

    Args:
        points: x, y, x, y, ... of all (2P,).
        counts: of points of each (G,).
        sides: of the images (G, 3).
    """
    ends = np.cumsum(counts)
    starts = ends - counts
    good = np.ones(len(counts), dtype=bool)
    width, height, far = sides.T
    axes = points[0::2].copy(), points[1::2].copy()
    for values, side in zip(axes, (width, height)):
        low, high = (f.reduceat(values, starts) for f in (np.minimum, np.maximum))
        good &= (low >= -far) & (high <= far) & (high > 1) & (low < side - 1) & (high - low > 1)
    following = np.arange(1, len(axes[0]) + 1)
    following[ends - 1] = starts
    with np.errstate(all="ignore"):  # of values that are not good
        x, y = axes
        doubled = np.add.reduceat(x * y[following] - x[following] * y, starts)  # shoelace formula
        return good & (np.abs(doubled) >= 4)
