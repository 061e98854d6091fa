"""
What is wrong with the annotations of a dataset: references, boxes, masks, keypoints.

Values are bounded before pycocotools, which writes past its memory for some, sees them. Clean
annotations, as nearly all are, are recognized many at a time (clean.py); only the others are looked
at in detail.
"""

import math
from collections import Counter
from typing import Any, Collection, Dict, Iterator, List, Mapping, Tuple

from pycocotools import mask as mask_util

from ..runtime.words import shown
from .box_forms import other_form
from .clean import LEAST, Bounds, not_clean
from .images import is_side, most_pixels
from .mend import Notes, column
from .problems import Problem, annotation_name, image_name, is_number, short

# No coordinate may be further away than this many times the image's longer side: pycocotools
# overflows at about 4e8 pixels, and takes memory for every pixel of an edge before.
FAR, FAR_LEAST = 10, 10_000  # times; pixels


def check_annotations(content: Dict[str, Any], notes: Notes) -> Iterator[Problem]:
    """
    Args:
        content: of a COCO file, as :func:`mend` leaves it.
        notes: gets the annotations whose masks or boxes have no area.
    """
    for key in ("images", "categories"):
        for value, count in Counter(entry["id"] for entry in content[key]).items():
            if count > 1:
                yield Problem("error", f"{key} {short(value)}", f"this id is there {count} times")
    yield from _shared_files(content["images"])
    for name, count in Counter(c["name"] for c in content["categories"]).items():
        if count > 1:
            yield Problem("warning", f"category {short(name)}", f"this name is there {count} times")
    if "annotations" not in content:
        yield Problem("warning", "annotations", "there are none: for predictions only")
        return
    without, objects = masks_missing(content)
    if 0 < without < objects:
        what = f"{without} of {objects} objects have no segmentation: for boxes only"
        yield Problem("warning", "annotations", what)
    if without < max(objects, 1):
        _empty_masks(content["annotations"], notes)
    images = {image["id"]: image for image in content["images"]}
    sizes = {key: _size(image) for key, image in images.items()}
    categories = {category["id"] for category in content["categories"]}
    yield from other_form(content["annotations"], images)
    for annotation in not_clean(content["annotations"], sizes, categories):
        found = list(_annotation(annotation, images, sizes, categories))
        yield from found
        size = sizes.get(annotation["image_id"])
        if any(problem.level == "error" for problem in found):
            continue
        if _is_flat(annotation, size):
            notes.add(annotation_name(annotation), "its mask has no area in the image: left out")
            notes.flat.append(annotation)
        if not annotation["iscrowd"] and _has_no_box(annotation, size):
            what = "its box has no area in the image: not counted in evaluation either"
            notes.add(annotation_name(annotation), what)
            notes.boxless.append(annotation)


def _shared_files(images: List[Dict[str, Any]]) -> Iterator[Problem]:
    """Warn of files that are several images, as when a converter writes one for each object."""
    counts = Counter(column(images, "file_name"))
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        what = (
            f"{len(shared)} of the files, as {short(shared[0])}, are several images each: what is "
            "annotated in one of these is background in the others"
        )
        yield Problem("warning", "images", what)


def masks_missing(content: Dict[str, Any]) -> Tuple[int, int]:
    """
    How many objects have no mask, and how many there are. Crowds are none of them. An empty mask is
    none in a file of boxes, and one without area where others have masks.
    """
    objects = [a for a in content.get("annotations", ()) if a.get("iscrowd") != 1]
    without = [a for a in objects if not a.get("segmentation")]
    if len(without) < len(objects):
        without = [a for a in without if a.get("segmentation") != []]
    return len(without), len(objects)


def _empty_masks(annotations: List[Dict[str, Any]], notes: Notes) -> None:
    """Note empty masks and crowds without one: where others have masks, evaluation reads all."""
    for annotation in annotations:
        mask = annotation.get("segmentation")
        if mask:
            continue
        if annotation["iscrowd"] == 1:
            what = "is a crowd without segmentation: its box is taken where masks are needed"
        elif mask == []:
            what = "its segmentation is empty: left out"
        else:
            continue
        notes.add(annotation_name(annotation), what)
        notes.flat.append(annotation)


def _has_no_box(annotation: Dict[str, Any], size: Bounds) -> bool:
    (x, y, w, h), (width, height, _) = annotation["bbox"], size
    return min(x + w, width) - max(x, 0) <= LEAST or min(y + h, height) - max(y, 0) <= LEAST


def _is_flat(annotation: Dict[str, Any], size: Bounds) -> bool:
    """Whether a mask, without errors, has no pixel of its image."""
    mask, (width, height, _) = annotation.get("segmentation"), size
    if not mask or annotation["iscrowd"] or not (is_side(width) and is_side(height)):
        return False
    if isinstance(mask, list):
        if any(len(polygon) < 6 for polygon in mask):
            return False  # said already, and in the list
        mask = mask_util.frPyObjects(mask, height, width)
    elif isinstance(mask["counts"], list):
        return not sum(mask["counts"][1::2])
    return not sum(mask_util.area(mask if isinstance(mask, list) else [mask]))


def _size(image: Dict[str, Any]) -> Bounds:
    # (of an image whose own size is an error, no coordinate is judged by it)
    width, height = image.get("width"), image.get("height")
    if not (is_side(width) and is_side(height)) or max(width, height) > most_pixels():
        return math.inf, math.inf, FAR_LEAST
    return width, height, max(FAR * max(width, height), FAR_LEAST)


def _annotation(
    annotation: Dict[str, Any],
    images: Mapping[Any, Dict[str, Any]],
    sizes: Mapping[Any, Bounds],
    categories: Collection[Any],
) -> Iterator[Problem]:
    """``images`` and ``sizes`` by the images' ids, ``categories`` by their own."""
    where = annotation_name(annotation)
    image = images.get(annotation["image_id"])
    if image is None:
        yield Problem("error", where, f"there is no image {short(annotation['image_id'])}")
        return
    where += f" of {image_name(image)}"
    if annotation["category_id"] not in categories:
        what = f"there is no category {short(annotation['category_id'])}; there are "
        yield Problem("error", where, what + shown(sorted(categories, key=str)))
    size = sizes[annotation["image_id"]]
    yield from _box(annotation, size, where)
    yield from _mask(annotation, image, size, where)
    yield from _keypoints(annotation, size, where)
    if annotation.get("iscrowd") not in (0, 1):
        what = f"iscrowd is {short(annotation.get('iscrowd'))}; it must be 0 or 1"
        yield Problem("error", where, what)


def _box(annotation: Dict[str, Any], size: Bounds, where: str) -> Iterator[Problem]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        what = f"bbox is {short(box)}; it must be [x, y, width, height]"
        yield Problem("error", where, what)
        return
    x, y, w, h = box
    width, height, far = size
    if max(map(abs, box)) > far:
        yield Problem("error", where, f"bbox {short(box)} is further away than {far:g} pixels")
    elif w <= LEAST or h <= LEAST:
        yield Problem("warning", where, f"bbox {box} has no area, and is left out")
    elif _has_no_box(annotation, size):
        what = f"bbox {box} is outside of the image ({width} x {height}), and is left out"
        yield Problem("warning", where, what)
    elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        what = f"bbox {box} reaches out of the image ({width} x {height}), and is clipped"
        yield Problem("warning", where, what)


def _mask(annotation: Dict, image: Dict, size: Bounds, where: str) -> Iterator[Problem]:
    mask = annotation.get("segmentation")
    if not mask:  # for Detectron2 there is none, then
        return
    if isinstance(mask, list):
        for polygon in mask:
            numbers = isinstance(polygon, list) and all(map(is_number, polygon))
            if not numbers or (len(polygon) % 2 and len(polygon) > 5):
                what = "a polygon must be a list of x, y, x, y, ..."
                yield Problem("error", where, what)
            elif polygon and max(map(abs, polygon)) > size[2]:
                what = f"a polygon has a point further away than {size[2]:g} pixels"
                yield Problem("error", where, what)
    elif isinstance(mask, dict):
        yield from _rle(mask, image, where)
    else:
        yield Problem("error", where, f"segmentation is a {type(mask).__name__}")


def _rle(mask: Dict, image: Dict, where: str) -> Iterator[Problem]:
    size = [image.get("height"), image.get("width")]
    if not {"size", "counts"} <= set(mask) or mask["size"] != size:
        what = f"the RLE's size is {short(mask.get('size'))}; it must be the image's, {size}"
        yield Problem("error", where, what)
        return
    if not all(is_side(side) for side in size) or size[0] * size[1] > most_pixels():
        return  # said of the image
    counts = mask["counts"]
    if isinstance(counts, list):
        whole = all(type(c) is int and c >= 0 for c in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            yield Problem("error", where, "the RLE's counts do not add up to the image")
    elif not isinstance(counts, str) or not _decodes(mask):
        yield Problem("error", where, "the RLE's counts cannot be decoded")


def _decodes(rle: Dict[str, Any]) -> bool:
    """
    Whether pycocotools may decode compressed counts: it does not check what it is given before it
    writes, so the runs are counted here first.

    A number is written as characters from "0" on, six bits each: five of the number, the lowest
    first, and one that says whether more follow. The last one's highest bit of the five is the
    sign. From the fourth number on each is the difference to the last but one before it.
    """
    height, width = rle["size"]
    total, value, shift, runs = 0, 0, 0, []
    for byte in rle["counts"].encode("latin1", "replace"):
        code = byte - 48
        if not 0 <= code < 64 or shift > 60 or total > height * width:
            return False
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value |= -1 << shift
            if len(runs) > 2:
                value += runs[-2]
            if value < 0:
                return False
            runs.append(value)
            total += value
            value, shift = 0, 0
    if shift or total != height * width:
        return False
    return mask_util.decode(rle).shape == (height, width)


def _keypoints(annotation: Dict, size: Bounds, where: str) -> Iterator[Problem]:
    points = annotation.get("keypoints")
    if not points:
        return
    good = isinstance(points, list) and len(points) % 3 == 0 and all(map(is_number, points))
    if not good or max(map(abs, points)) > size[2]:
        what = "keypoints must be a list of x, y, visibility, x, y, visibility, ..."
        yield Problem("error", where, what)
