"""Boxes in another form than COCO's, which no single one of them shows."""

from typing import Any, Dict, Iterator, List, Tuple

from .images import is_side
from .problems import Problem, is_number, short

MOST_LOOKED_AT = 1000  # boxes, to see what all are like
LEAST_LOOKED_AT = 10  # of fewer, chance may make any form
Box, Size = List[float], Tuple[int, int]


def other_form(
    annotations: List[Dict[str, Any]], images: Dict[Any, Dict[str, Any]]
) -> Iterator[Problem]:
    """
    Args:
        annotations: of a COCO file.
        images: by id.
    """
    step = max(1, len(annotations) // MOST_LOOKED_AT)
    pairs = [(a.get("bbox"), _size(images.get(a["image_id"]))) for a in annotations[::step]]
    boxes = [(box, size) for box, size in pairs if size is not None and _is_box(box)]
    if boxes and sum(map(_is_in_a_pixel, boxes)) >= 0.9 * len(pairs):
        what = (
            f"bbox {short(boxes[0][0])} and nearly all others are between 0 and 1: they must be "
            "pixels, [x, y, width, height]"
        )
        yield Problem("error", "annotations", what)
    elif len(boxes) >= LEAST_LOOKED_AT and all(map(_are_corners, boxes)):
        out = [box for box, size in boxes if _reaches_out(box, size)]
        if len(out) >= 0.1 * len(boxes):
            what = (
                f"{len(out)} of {len(boxes)} boxes, as {short(out[0])}, reach far out of their "
                "images, and all look like corners, [x1, y1, x2, y2]: they must be "
                "[x, y, width, height]"
            )
            yield Problem("warning", "annotations", what)


def _size(image: Any) -> Any:
    if image is None or not (is_side(image.get("width")) and is_side(image.get("height"))):
        return None
    return image["width"], image["height"]


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def _is_in_a_pixel(pair: Tuple[Box, Size]) -> bool:
    """Parts of the image's sides would be less than a pixel each, in a corner."""
    box, size = pair
    # whole numbers, as [0, 0, 1, 1], may be fillers of a test set without annotations
    whole = not any(value % 1 for value in box)
    return min(size) > 2 and 0 <= min(box) and max(box) <= 1 and not whole


def _are_corners(pair: Tuple[Box, Size]) -> bool:
    (x1, y1, x2, y2), (width, height) = pair
    return 0 <= x1 < x2 <= width + 1 and 0 <= y1 < y2 <= height + 1


def _reaches_out(box: Box, size: Size) -> bool:
    """Whether a box ends more than a tenth of the image outside it."""
    return any(start + side > 1.1 * most for start, side, most in zip(box, box[2:], size))
