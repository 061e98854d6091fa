"""
What is wrong with a dataset in COCO's format: all of it at once.

The file comes from anywhere, so nothing in it may crash or hang the check: types are looked at
before values, and values are bounded before pycocotools, which writes past its memory for some,
sees them. Clean annotations, as nearly all are, are recognised many at a time (clean.py); only the
others are looked at in detail.
"""

import gc
import json
import math
import os
import stat
from collections import Counter
from contextlib import contextmanager
from itertools import chain
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools import mask as mask_util

from .clean import LEAST, Size, not_clean
from .mend import Notes, column, mend, types

LISTS = ("images", "annotations", "categories")
NEEDS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
LONGEST = 20  # times as long as wide: little is left of such an image at a usual size
# No coordinate may be further away than this many times the image's longer side: pycocotools
# overflows at about 4e8 pixels, and takes memory for every pixel of an edge before.
FAR, FAR_LEAST = 10, 10_000  # times; pixels
TURNS = {
    2: "mirrors it", 3: "turns it by 180 degrees", 4: "mirrors it", 5: "turns and mirrors it",
    6: "turns it by 90 degrees", 7: "turns and mirrors it", 8: "turns it by 90 degrees",
}  # fmt: skip


class Problem(NamedTuple):
    """
    Attributes:
        level: "error" for what stops training or evaluation, "warning" for what is mended here or
            passed over by Detectron2.
        where: the file, image, annotation or category.
        what: is wrong, and what would be right.
    """

    level: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Report(NamedTuple):
    """
    Attributes:
        content: of the file, mended in place; what the JSON holds if it is no COCO file.
        problems: errors first.
        notes: what was mended, and the annotations whose masks have no area.
    """

    content: Any
    problems: List[Problem]
    notes: Notes

    @property
    def errors(self) -> List[Problem]:
        return [p for p in self.problems if p.level == "error"]


def check_coco(json_file: str, image_root: str, read_images: bool = True) -> List[Problem]:
    """
    Check annotations and images.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder the images' ``file_name`` starts from.
        read_images: decode every image as well, which takes long.
    """
    return examine(json_file, image_root, read_images).problems


def examine(json_file: str, image_root: str, read_images: bool = False) -> Report:
    """As :func:`check_coco`, with what was read and mended."""
    notes = Notes()
    with without_gc():
        content, problems = read_coco(json_file, notes)
        if not problems:
            mend(content, notes)
            problems = [*_annotations(content, notes), *_files(content, image_root)]
            problems += [Problem("warning", where, what) for where, what in notes.lines()]
        if read_images and content is not None:
            problems += _images(content, image_root, problems)
    problems = once(problems)
    return Report(content, problems, notes)


@contextmanager
def without_gc() -> Iterator[None]:
    """Millions of objects are made and none is garbage: looking for it takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_coco(json_file: str, notes: Notes) -> Tuple[Any, List[Problem]]:
    """The content of an annotation file, or None, and what makes it no COCO file."""
    try:
        if os.path.exists(json_file) and not os.path.isfile(json_file):
            raise OSError("it is no regular file")  # a pipe would hang, a device never end
        with PathManager.open(json_file, "rb") as f:
            data = f.read()
        content = _parse(data)
    except (OSError, ValueError, RecursionError) as error:
        return None, [Problem("error", json_file, f"cannot be read as JSON: {error}")]
    if json.detect_encoding(data[:4]) != "utf-8":
        notes.add("the file", "is not in plain UTF-8, which pycocotools needs")
    problems = list(_structure(content))
    bad = [Problem(p.level, f"{json_file}, {p.where}", p.what) for p in problems]
    return (None if bad else content), bad


def _parse(data: bytes) -> Any:
    """
    orjson takes a quarter of the time. What it refuses (nan, half letters) or would round (ids of
    more than 64 bits), and where it is not installed, is json's.
    """
    try:
        import orjson

        content = orjson.loads(data)
    except (ImportError, ValueError):
        return json.loads(data)
    return json.loads(data) if _has_rounded_ids(content) else content


def _has_rounded_ids(content: Any) -> bool:
    lists = [content.get(key) for key in ("images", "categories")] if type(content) is dict else []
    entries = chain.from_iterable(entries for entries in lists if type(entries) is list)
    ids = (entry.get("id") for entry in entries if type(entry) is dict)
    return any(type(value) is float and value >= 2**63 for value in ids)


def open_coco(json_file: str) -> Dict[str, Any]:
    """
    The content of an annotation file, as it is.

    Raises:
        ValueError: it is none; lists why.
    """
    content, problems = read_coco(json_file, Notes())
    if problems:
        raise ValueError(f"It must be a file in COCO's format:\n{summary(problems)}")
    return content


def _is_id(value: Any) -> bool:
    # 7.0 is what pandas makes of 7
    return type(value) in (int, str) or (type(value) is float and value.is_integer())


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float
        return False


def _short(value: Any) -> str:
    """For a message: numbers of a thousand digits and lists of a million stay out of it."""
    try:
        text = repr(value)
    except ValueError:  # too many digits
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else text[:77] + "..."


def _structure(content: Any) -> Iterator[Problem]:
    """What makes the file no COCO file."""
    if not isinstance(content, dict):
        yield Problem("error", "top", f"is a {type(content).__name__}; it must be an object")
        return
    for key in LISTS:
        if key == "annotations" and content.get(key) is None:
            continue  # a test set whose annotations are kept back
        if not isinstance(content.get(key), list):
            yield Problem("error", key, f"has no list '{key}'")
            continue
        kinds = set()
        for i, entry in enumerate(() if _all_refer(content[key], key) else content[key]):
            problem = _entry(entry, key)
            if problem:
                yield Problem("error", f"{key}[{i}]", problem)
            elif key != "annotations":
                kinds.add(isinstance(entry["id"], str))
        if len(kinds) == 2:
            yield Problem("error", key, "has ids that are numbers and ids that are text")
    if content.get("images") == [] or content.get("categories") == []:
        yield Problem("error", "top", "lists no images, or no categories")


def _all_refer(entries: List[Any], key: str) -> bool:
    """Whether all are annotations with whole numbers for references: of these there are many."""
    if key != "annotations" or not types(entries) <= {dict}:
        return False
    return all(types(column(entries, name)) <= {int} for name in NEEDS[key])


def _entry(entry: Any, key: str) -> str:
    if not isinstance(entry, dict):
        return "is no object"
    missing = [name for name in NEEDS[key] if name not in entry]
    if missing:
        return f"has no {', '.join(map(repr, missing))}"
    for name in NEEDS[key]:
        value, text = entry[name], name in ("file_name", "name")
        if not (isinstance(value, str) if text else _is_id(value)):
            return f"has the {name} {_short(value)}, no {'text' if text else 'number or text'}"
        if isinstance(value, str) and "\0" in value:
            return f"has a NUL in its {name} {_short(value)}"
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            return f"has half a letter (a surrogate) in its {name} {_short(value)}"
    return ""


def image_name(image: Dict[str, Any]) -> str:
    return f"image {_short(image['id'])} ({_short(image['file_name'])})"


def annotation_name(annotation: Dict[str, Any]) -> str:
    return f"annotation {_short(annotation.get('id'))}"


def _annotations(content: Dict[str, Any], notes: Notes) -> Iterator[Problem]:
    for key in ("images", "categories"):
        for value, count in Counter(entry["id"] for entry in content[key]).items():
            if count > 1:
                yield Problem("error", f"{key} {_short(value)}", f"this id is there {count} times")
    for name, count in Counter(c["name"] for c in content["categories"]).items():
        if count > 1:
            yield Problem(
                "warning", f"category {_short(name)}", f"this name is there {count} times"
            )
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


def _empty_masks(annotations: List[Dict[str, Any]], notes: Notes) -> None:
    """Where others have masks, the evaluation reads one of every object, and of crowds as well."""
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


def _has_no_box(annotation: Dict[str, Any], size: Size) -> bool:
    (x, y, w, h), (width, height, _) = annotation["bbox"], size
    return min(x + w, width) - max(x, 0) <= LEAST or min(y + h, height) - max(y, 0) <= LEAST


def _is_flat(annotation: Dict[str, Any], size: Size) -> bool:
    """Whether a mask, without errors, has no pixel of its image."""
    mask, (width, height, _) = annotation.get("segmentation"), size
    if not mask or annotation["iscrowd"] or not (_is_side(width) and _is_side(height)):
        return False
    if isinstance(mask, list):
        if any(len(polygon) < 6 for polygon in mask):
            return False  # said already, and in the list
        mask = mask_util.frPyObjects(mask, height, width)
    elif isinstance(mask["counts"], list):
        return not sum(mask["counts"][1::2])
    return not sum(mask_util.area(mask if isinstance(mask, list) else [mask]))


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


def _size(image: Dict[str, Any]) -> Size:
    # (of an image whose own size is an error, no coordinate is judged by it)
    width, height = image.get("width"), image.get("height")
    if not (_is_side(width) and _is_side(height)) or max(width, height) > most_pixels():
        return math.inf, math.inf, FAR_LEAST
    return width, height, max(FAR * max(width, height), FAR_LEAST)


def _annotation(annotation, images, sizes, categories) -> Iterator[Problem]:
    where = annotation_name(annotation)
    image = images.get(annotation["image_id"])
    if image is None:
        yield Problem("error", where, f"there is no image {_short(annotation['image_id'])}")
        return
    where += f" of {image_name(image)}"
    if annotation["category_id"] not in categories:
        what = f"there is no category {_short(annotation['category_id'])}; there are "
        yield Problem("error", where, what + _some(sorted(categories, key=str)))
    size = sizes[annotation["image_id"]]
    yield from _box(annotation, size, where)
    yield from _mask(annotation, image, size, where)
    yield from _keypoints(annotation, size, where)
    if annotation.get("iscrowd") not in (0, 1):
        what = f"iscrowd is {_short(annotation.get('iscrowd'))}; it must be 0 or 1"
        yield Problem("error", where, what)


def _some(values: List[Any]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


def _box(annotation: Dict[str, Any], size: Size, where: str) -> Iterator[Problem]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        what = f"bbox is {_short(box)}; it must be [x, y, width, height]"
        yield Problem("error", where, what)
        return
    x, y, w, h = box
    width, height, far = size
    if max(map(abs, box)) > far:
        yield Problem("error", where, f"bbox {_short(box)} is further away than {far:g} pixels")
    elif w <= LEAST or h <= LEAST:
        yield Problem("warning", where, f"bbox {box} has no area, and is left out")
    elif _has_no_box(annotation, size):
        what = f"bbox {box} is outside of the image ({width} x {height}), and is left out"
        yield Problem("warning", where, what)
    elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        what = f"bbox {box} reaches out of the image ({width} x {height}), and is clipped"
        yield Problem("warning", where, what)


def _mask(annotation: Dict, image: Dict, size: Size, where: str) -> Iterator[Problem]:
    mask = annotation.get("segmentation")
    if not mask:  # for Detectron2 there is none, then
        return
    if isinstance(mask, list):
        for polygon in mask:
            numbers = isinstance(polygon, list) and all(map(_is_number, polygon))
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
        what = f"the RLE's size is {_short(mask.get('size'))}; it must be the image's, {size}"
        yield Problem("error", where, what)
        return
    if not all(_is_side(side) for side in size) or size[0] * size[1] > most_pixels():
        return  # said of the image
    counts = mask["counts"]
    if isinstance(counts, list):
        whole = all(type(c) is int and c >= 0 for c in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            yield Problem("error", where, "the RLE's counts do not add up to the image")
    elif not isinstance(counts, str) or not _decodes(mask):
        yield Problem("error", where, "the RLE's counts cannot be decoded")


def _decodes(rle: Dict[str, Any]) -> bool:
    height, width = rle["size"]
    # pycocotools does not check what it is given before it writes: count the runs first
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


def _keypoints(annotation: Dict, size: Size, where: str) -> Iterator[Problem]:
    points = annotation.get("keypoints")
    if not points:
        return
    good = isinstance(points, list) and len(points) % 3 == 0 and all(map(_is_number, points))
    if not good or max(map(abs, points)) > size[2]:
        what = "keypoints must be a list of x, y, visibility, x, y, visibility, ..."
        yield Problem("error", where, what)


def _is_side(value: Any) -> bool:
    return type(value) is int and value >= 1


def most_pixels() -> int:
    """Of an image: what Pillow, which Detectron2 reads with, decodes; at most what fits an int."""
    return min(2 * (Image.MAX_IMAGE_PIXELS or 2**30), 2**31 - 1)


def _files(content: Dict[str, Any], root: str) -> Iterator[Problem]:
    remote = "://" in root
    if not remote and not os.path.isdir(root):
        yield Problem("error", root, "there is no such folder of images")
        return
    inside = os.path.join(os.path.abspath(root), "")
    folders: Dict[str, Dict[str, os.DirEntry]] = {}
    for image in content["images"]:
        yield from _sides(image)
        path = os.path.join(root, image["file_name"])
        if remote:
            continue
        # as written: where links lead is up to whoever made them (DVC's and git-annex's lead out)
        suspicious = ".." in image["file_name"] or os.path.isabs(image["file_name"])
        if suspicious and not os.path.abspath(path).startswith(inside):
            what = f"is not in the folder of images, '{root}'"
            yield Problem("error", image_name(image), what)
            continue
        folder, base = os.path.split(path)
        if folder not in folders:
            folders[folder] = _listing(folder)
        what = _is_file(folders[folder].get(base), path)
        if what:
            yield Problem("error", image_name(image), what)


def _sides(image: Dict[str, Any]) -> Iterator[Problem]:
    good = True
    for side in ("width", "height"):
        if not _is_side(image.get(side)):
            good = False
            what = f"{side} is {_short(image.get(side))}; it must be the image's, in pixels"
            yield Problem("error", image_name(image), what)
    if good and image["width"] * image["height"] > most_pixels():
        size = f"{_short(image['width'])} x {_short(image['height'])}"
        what = f"its size is {size}; it must be at most {most_pixels()} pixels (Pillow's limit)"
        yield Problem("error", image_name(image), what)
    elif good and max(image["width"], image["height"]) > LONGEST * min(
        image["width"], image["height"]
    ):
        size = f"{image['width']} x {image['height']}"
        what = f"is of {size} pixels: too long to leave much at a usual size"
        yield Problem("warning", image_name(image), what)


def _listing(folder: str) -> Dict[str, os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except (OSError, ValueError):
        return {}


def _is_file(entry: Any, path: str) -> str:
    """What is wrong with a file of a folder; its name's type is known without a system call."""
    if entry is None:
        return f"there is no file {_short(path)}"
    try:
        if entry.is_file():
            return ""
        mode = os.stat(path).st_mode
    except OSError as error:
        return (
            f"there is no file {_short(path)}: it is a link that leads nowhere ({error.strerror})"
        )
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
    return f"{_short(path)} is {kind}; it must be a file"


def _images(content: Dict, root: str, problems: List[Problem]) -> List[Problem]:
    missing = {p.where for p in problems if p.level == "error"}
    found: List[Problem] = []
    for image in content["images"]:
        if image_name(image) not in missing and root not in missing:
            found += _pixels(image, os.path.join(root, image["file_name"]))
    return found


def _pixels(image: Dict[str, Any], path: str, decode: bool = True) -> Iterator[Problem]:
    where = image_name(image)
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as picture:
            if decode:
                picture.load()
            stored, mode, flag = picture.size, picture.mode, _orientation(picture)
    except Exception as error:  # decoders raise all kinds
        what = (
            f"cannot be read: {_said(error, path)}. Detectron2 reads what Pillow does: {_formats()}"
        )
        yield Problem("error", where, what)
        return
    shown = stored[::-1] if flag in (5, 6, 7, 8) else stored
    said = (image.get("width"), image.get("height"))
    if flag in TURNS and said == stored != shown:
        what = (
            f"the annotations are of the {stored[0]} x {stored[1]} pixels as stored, but its EXIF "
            f"orientation {flag} {TURNS[flag]} when Detectron2 reads it: {shown[0]} x {shown[1]}. "
            "Remove the flag, or annotate the image as it is shown"
        )
        yield Problem("error", where, what)
    elif shown != said:
        what = f"is of {shown[0]} x {shown[1]} pixels; the annotations say {said[0]} x {said[1]}"
        yield Problem("error", where, what)
    elif flag in TURNS and shown == stored:  # its size cannot show what the boxes are of
        what = (
            "its EXIF orientation turns or mirrors it when Detectron2 reads it: boxes that were "
            "drawn on the pixels as stored are then in the wrong place"
        )
        yield Problem("warning", where, what)
    if mode not in ("RGB", "L", "P", "CMYK", "YCbCr"):
        what = f"has the mode '{mode}': alpha is dropped, and more than 8 bits are cut off"
        yield Problem("warning", where, what)


def _orientation(picture: Image.Image) -> int:
    """As Detectron2 takes it: EXIF that cannot be read is none."""
    try:
        flag = picture.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises all kinds
        return 1
    return flag if isinstance(flag, int) else 1


def _said(error: Exception, path: str) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"cannot identify image file {_short(path)}"
    return str(error) or type(error).__name__


def _formats() -> str:
    Image.init()
    known = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000"}
    return ", ".join(sorted(known & set(Image.OPEN)))


def sample_images(content: Dict[str, Any], root: str, most: int = 64) -> List[Problem]:
    """What the headers of a few images, spread over the dataset, say against the annotations."""
    images = content["images"]
    step = max(1, len(images) // most)
    found: List[Problem] = []
    for image in images[::step][:most]:
        found += _pixels(image, os.path.join(root, image["file_name"]), decode=False)
    return found


def once(problems: List[Problem], errors: bool = False) -> List[Problem]:
    """
    Errors first; what is the same of many images or annotations once. Of errors only if asked for:
    a tool is to list all.
    """
    places: Dict[Tuple[str, str], List[str]] = {}
    kept = [p for p in problems if p.level == "error" and not errors]
    for problem in problems:
        if errors or problem.level == "warning":
            places.setdefault((problem.level, problem.what), []).append(problem.where)
    return kept + [Problem(level, _first(where), what) for (level, what), where in places.items()]


def _first(places: List[str], most: int = 3) -> str:
    if len(places) == 1:
        return places[0]
    return f"{len(places)} times: " + ", ".join(places[:most]) + (", ..." * (len(places) > most))


def summary(problems: List[Problem], most: int = 10) -> str:
    """The first of them, one a line, and how many more there are; what many share is one."""
    problems = once(problems, errors=True)
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  and {len(problems) - most} more")
    return "\n".join(lines)
