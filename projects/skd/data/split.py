"""Parts of a dataset in COCO's format, by its images' names."""

import hashlib
from typing import Any, Collection, Dict, List


def fold_of(file_name: str, folds: int) -> int:
    """The fold an image belongs to. Depends on its name alone, so every machine agrees."""
    return int(hashlib.sha256(file_name.encode()).hexdigest(), 16) % folds


def take_folds(content: Dict[str, Any], folds: int, take: Collection[int]) -> Dict[str, Any]:
    """
    The images of some folds and their annotations.

    Args:
        content: of a JSON file in COCO's format; stays as it is.
        folds: how many there are.
        take: which of them to keep, 0 to ``folds`` - 1.

    Raises:
        ValueError: a fold that does not exist, more folds than images, or no image is left.
    """
    number = len(content["images"])
    if folds > number:
        raise ValueError(f"--folds is {folds}; it must be at most the number of images, {number}.")
    unknown = sorted(k for k in take if not 0 <= k < folds)
    if unknown:
        raise ValueError(f"--take: no fold {unknown}: {folds} folds are 0 to {folds - 1}.")
    images = [x for x in content["images"] if fold_of(x["file_name"], folds) in take]
    if not images:
        raise ValueError(f"None of the {number} images is in the folds {sorted(take)}.")
    return _only(content, images)


def take_names(
    content: Dict[str, Any], names: Collection[str], without: bool = False
) -> Dict[str, Any]:
    """
    The images of a list and their annotations.

    Args:
        content: of a JSON file in COCO's format; stays as it is.
        names: their ``file_name``.
        without: the others instead.

    Raises:
        ValueError: no image is left.
    """
    names = set(names)
    images = [x for x in content["images"] if (x["file_name"] in names) != without]
    if not images:
        raise ValueError(
            f"{'Each' if without else 'None'} of the {len(content['images'])} images is in the "
            f"list of {len(names)} names."
        )
    return _only(content, images)


def _only(content: Dict[str, Any], images: List[Dict[str, Any]]) -> Dict[str, Any]:
    if content.get("annotations") is None:  # a test set whose annotations are kept back
        return {**content, "images": images}
    known = {_id(x["id"]) for x in content["images"]}
    astray = [x["image_id"] for x in content["annotations"] if _id(x["image_id"]) not in known]
    if astray:
        raise ValueError(
            f"{len(astray)} annotations are of images that are not in the file, the first of image "
            f"{astray[0]!r}: see tools/check_dataset.py."
        )
    kept = {_id(x["id"]) for x in images}
    annotations = [x for x in content["annotations"] if _id(x["image_id"]) in kept]
    return {**content, "images": images, "annotations": annotations}


def _id(value: Any) -> str:
    """7, 7.0 and "7" are the same image, as for the check of datasets."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
