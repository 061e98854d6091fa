"""
Mends what is wrong with a dataset in COCO's format but can only be meant in one way.

Detectron2's loader passes over much that pycocotools, which evaluates, stops at after the last
iteration (no ``area``) or gets wrong (pycocotools takes annotation id 0 for "no match"). The file
itself stays as it is: see :mod:`skd.data.coco` for where the mended copy goes.
"""

from itertools import chain
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Set, Tuple

from pycocotools import mask as mask_util

from .problems import is_number

CROWD_WORDS = {"0": 0, "false": 0, "no": 0, "": 0, "1": 1, "true": 1, "yes": 1}

MOST_AREA = 1e10  # pixels; pycocotools leaves out what is larger, and no image has as many
# An area below a pixel of a box of this many is none of pixels: normalized, or made up
LEAST_BOX = 100


class Notes:
    """
    What was mended, with how often and where first.

    Attributes:
        without_area: annotations whose ``area`` is to be computed once their masks are checked.
        flat: annotations whose masks have no area: no polygon of three points, or none of whose
            pixels is in the image.
        boxless: annotations whose boxes have no area in the image. No detector can find them.
    """

    def __init__(self):
        self.places: Dict[str, List[Any]] = {}
        self.without_area: List[Dict[str, Any]] = []
        self.flat: List[Dict[str, Any]] = []
        self.boxless: List[Dict[str, Any]] = []

    def add(self, where: str, what: str) -> None:
        self.places.setdefault(what, [0, where])[0] += 1

    def lines(self) -> Iterator[Tuple[str, str]]:
        """(where, what) for each kind, once."""
        for what, (count, first) in self.places.items():
            yield (first if count == 1 else f"{count} times, first {first}"), what

    def __bool__(self) -> bool:
        """Whether anything differs from the file."""
        return bool(self.places)


def mend(content: Dict[str, Any], notes: Notes) -> None:
    """
    Mend the content of a COCO file in place.

    Args:
        content: whose lists and their entries' ids have the right types.
        notes: gets what was mended.
    """
    if "annotations" in content and content["annotations"] is None:
        del content["annotations"]
        notes.add("annotations", "null is taken for a test set whose annotations are kept back")
    annotations = content.get("annotations", [])
    for i, image in enumerate(content["images"]):
        _whole(image, ("id", "width", "height"), f"images[{i}]", notes)
    for i, category in enumerate(content["categories"]):
        _whole(category, ("id",), f"categories[{i}]", notes)
    _references(content, notes)
    _ids(annotations, notes)
    _areas(content, notes)
    for i, annotation in enumerate(() if _clean(annotations) else annotations):
        _annotation(annotation, i, notes)


def column(entries: Sequence[Dict[str, Any]], key: str) -> List[Any]:
    """One value of all entries. A look at columns is many times as fast as one at entries."""
    return [entry.get(key) for entry in entries]


def types(values: Iterable[Any]) -> Set[type]:
    """The types of some values: True and False are no int here."""
    return set(map(type, values))


def _clean(annotations: List[Dict[str, Any]]) -> bool:
    """Whether :func:`_annotation` has nothing to do, for all of them at once."""
    crowds = column(annotations, "iscrowd")
    if not (types(crowds) <= {int} and set(crowds) <= {0, 1}):
        return False
    if any("ignore" in a or "keypoints" in a for a in annotations):
        return False
    polygons = chain.from_iterable(
        m for m in column(annotations, "segmentation") if type(m) is list
    )
    return all(type(p) is not list or len(p) >= 6 for p in polygons)


def _whole(entry: Dict[str, Any], keys: Sequence[str], where: str, notes: Notes) -> None:
    """Make whole numbers of an entry's floats that are some."""
    for key in keys:
        value = entry.get(key)
        if type(value) is float and value.is_integer():
            entry[key] = int(value)
            notes.add(where, f"{key} is a float where a whole number belongs: made one")


def _references(content: Dict[str, Any], notes: Notes) -> None:
    """Ids that are numbers here and the same numbers as text or floats there."""
    annotations = content.get("annotations", [])
    for key, reference in (("images", "image_id"), ("categories", "category_id")):
        if types(column(content[key], "id")) == {str}:
            _ids_in_quotes(content[key], key, types(column(annotations, reference)), notes)
    images, categories = ({e["id"] for e in content[key]} for key in ("images", "categories"))
    if types(column(annotations, "image_id") + column(annotations, "category_id")) <= {int}:
        return
    for i, annotation in enumerate(annotations):
        for key, ids in (("image_id", images), ("category_id", categories)):
            value = annotation[key]
            if type(value) is float:
                _whole(annotation, (key,), f"annotations[{i}]", notes)
            elif type(value) is str and value not in ids and _as_int(value) in ids:
                annotation[key] = _as_int(value)
                notes.add(f"annotations[{i}]", f"{key} is a number in quotes: taken for the number")


def _ids_in_quotes(entries: List[Dict[str, Any]], key: str, references: Set[type], notes) -> None:
    numbers = [_as_int(entry["id"]) for entry in entries]
    if references <= {str} or None in numbers or len(set(numbers)) < len(numbers):
        return
    for entry, number in zip(entries, numbers):
        entry["id"] = number
    notes.add(key, "an id is a number in quotes, and not so in annotations: taken for the number")


def _as_int(text: str) -> Any:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _ids(annotations: List[Dict[str, Any]], notes: Notes) -> None:
    ids = [annotation.get("id") for annotation in annotations]
    why = ""
    if not types(ids) <= {int} or max(ids, default=0) >= 2**63:
        why = "is missing or no whole number of 64 bits"
    elif ids and min(ids) <= 0:
        why = "is not above 0, which pycocotools takes for an object nothing was matched with"
    elif len(set(ids)) < len(ids):
        why = "is there several times"
    if why:
        for i, annotation in enumerate(annotations):
            annotation["id"] = i + 1
        notes.add("annotations", f"an id {why}: all get new ids, from 1")


def _annotation(annotation: Dict[str, Any], i: int, notes: Notes) -> None:
    crowd = annotation.get("iscrowd")
    if type(crowd) is not int or not 0 <= crowd <= 1:
        _crowd(annotation, f"annotations[{i}]", notes)
    if "ignore" in annotation:
        _ignore(annotation, f"annotations[{i}]", notes)
    if "keypoints" in annotation:
        _keypoints(annotation, f"annotations[{i}]", notes)
    mask = annotation.get("segmentation")
    if type(mask) is list and any(type(p) is list and len(p) < 6 for p in mask):
        _polygons(annotation, f"annotations[{i}]", notes)


def _areas(content: Dict[str, Any], notes: Notes) -> None:
    """The evaluation sorts objects by it into small, medium and large ones."""
    most = {image["id"]: _most_area(image) for image in content["images"]}
    annotations = content.get("annotations", [])
    areas, images = column(annotations, "area"), column(annotations, "image_id")
    for i, (area, image) in enumerate(zip(areas, images)):
        number = type(area) is float or type(area) is int
        if number and 1 <= area <= most.get(image, MOST_AREA):
            continue  # nearly all are
        if number and 0 < area < 1 and not _is_wide(annotations[i]):
            continue
        annotations[i].pop("area", None)
        notes.without_area.append(annotations[i])
        number = number and 0 <= area < MOST_AREA  # nan is none
        why = "0, more than its image's, or that of a far smaller box" if number else ""
        what = f"area is {why or 'missing or no number'}: computed from mask or box"
        notes.add(f"annotations[{i}]", what)


def _most_area(image: Dict[str, Any]) -> float:
    width, height = image.get("width"), image.get("height")
    if type(width) is not int or type(height) is not int:
        return MOST_AREA  # an error later
    pixels = min(width * height, MOST_AREA)  # which is no float yet: a size may be beyond
    return min(1.01 * pixels, MOST_AREA)  # rounding is no fault


def _is_wide(annotation: Dict[str, Any]) -> bool:
    box = annotation.get("bbox")
    good = type(box) is list and len(box) == 4 and all(map(is_number, box))
    return good and min(box[2:]) > 0 and box[2] * box[3] > LEAST_BOX


def _crowd(annotation: Dict[str, Any], where: str, notes: Notes) -> None:
    crowd = annotation.get("iscrowd")
    if crowd is None:
        annotation["iscrowd"] = 0
        notes.add(where, "iscrowd is missing or null: 0 is taken")
    elif isinstance(crowd, (bool, float)) and crowd in (0, 1):
        annotation["iscrowd"] = int(crowd)
        notes.add(where, "iscrowd is no whole number: made one")
    elif isinstance(crowd, str) and crowd.strip().lower() in CROWD_WORDS:
        annotation["iscrowd"] = CROWD_WORDS[crowd.strip().lower()]
        notes.add(where, "iscrowd is text: taken for 0 or 1")


def _ignore(annotation: Dict[str, Any], where: str, notes: Notes) -> None:
    """Detectron2 stops at the flag, pycocotools overwrites it; both know crowds."""
    ignore = annotation.pop("ignore")
    if type(ignore) is int and ignore == 0:
        annotation["ignore"] = 0  # nothing to mend: the file stays as it is
    elif ignore in (None, False, 0) or str(ignore).strip().lower() in ("0", "false", "no", ""):
        notes.add(where, "ignore is no whole number: 0 is taken")
    else:
        annotation["iscrowd"] = 1
        what = "is marked 'ignore': taken for a crowd, not learned and not counted in evaluation"
        notes.add(where, what)


def _keypoints(annotation: Dict[str, Any], where: str, notes: Notes) -> None:
    points, number = annotation["keypoints"], annotation.get("num_keypoints")
    if not points:
        del annotation["keypoints"]
        notes.add(where, "keypoints are empty: taken for none")
    elif type(points) is list:
        seen = sum(isinstance(v, (int, float)) and v > 0 for v in points[2::3])
        if type(number) is not int or number != seen:  # the evaluation skips objects that have 0
            annotation["num_keypoints"] = seen
            notes.add(where, "num_keypoints is missing or wrong: counted")


def _polygons(annotation: Dict[str, Any], where: str, notes: Notes) -> None:
    """pycocotools reads a polygon of two points as a box."""
    mask = annotation["segmentation"]
    short = [p for p in mask if type(p) is list and len(p) < 6]
    kept = [p for p in mask if not (type(p) is list and len(p) < 6)]
    notes.add(where, f"a polygon has {len(short[0]) // 2} points, needs 3, and is left out")
    if kept:
        annotation["segmentation"] = kept
    else:
        notes.flat.append(annotation)


def finish(
    content: Dict[str, Any], notes: Notes, with_masks: bool, with_keypoints: bool = False
) -> None:
    """
    What can be mended only once all is checked, in place: areas, and masks without one.

    Args:
        content: without errors.
        notes: of :func:`mend`.
        with_masks: whether masks are learned or evaluated. Without, an object whose mask is flat is
            its box; with, it is a region that is not learned and not counted (a crowd).
        with_keypoints: whether keypoints are. Objects without any get invisible ones.
    """
    if with_keypoints:
        _complete_keypoints(content.get("annotations", []), notes)
    for annotation in notes.flat:
        annotation.pop("segmentation", None)
        if with_masks:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotation["iscrowd"] = 1
    for annotation in notes.boxless:
        annotation["iscrowd"] = 1
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in notes.without_area:
        annotation["area"] = _area(annotation, *sizes[annotation["image_id"]])


def _complete_keypoints(annotations: List[Dict[str, Any]], notes: Notes) -> None:
    number = max((len(a.get("keypoints", ())) for a in annotations), default=0)
    for i, annotation in enumerate(annotations if number else ()):
        if "keypoints" not in annotation:
            annotation.update(keypoints=[0] * number, num_keypoints=0)
            notes.add(f"annotations[{i}]", "has no keypoints: invisible ones are taken")


def _area(annotation: Dict[str, Any], height: int, width: int) -> float:
    mask = annotation.get("segmentation")
    if not mask:  # of what is in the image: a box may reach far out of it
        x, y, w, h = annotation["bbox"]
        inside = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
        return float(max(inside[0], 0) * max(inside[1], 0))
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, height, width))
    elif isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, height, width)
    return float(mask_util.area(mask))


def renumber(content: Dict[str, Any], classes: Sequence[str], notes: Notes) -> None:
    """
    Give the categories the ids 1, 2, ... in the order of ``classes``, in place, by their names.

    Args:
        content: whose categories' names are among the classes, each once.
        classes: names in the order of another dataset; those missing here become categories.
    """
    index = {name: i + 1 for i, name in enumerate(classes)}
    new = {category["id"]: index[category["name"]] for category in content["categories"]}
    known = {category["name"]: category for category in content["categories"]}
    content["categories"] = [
        {**known.get(name, {}), "id": i, "name": name} for name, i in index.items()
    ]
    for annotation in content.get("annotations", ()):
        annotation["category_id"] = new[annotation["category_id"]]
    notes.add("categories", "are in another order or fewer than in training: mapped by name")
