"""
Whether the keypoints of datasets fit the model's, and each other's. A model knows a keypoint by its
place in the list, so that the same names in another order are other keypoints.
"""

import logging
import math
from collections import Counter
from typing import List, Mapping, Optional, Sequence, Tuple

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.utils import comm

from ..config.naming import setting_to
from ..runtime.words import shown
from .dataset_facts import DatasetFacts
from .mirror import without_partner
from .model_facts import ModelFacts

logger = logging.getLogger(__name__)
COCO_KEYPOINTS = len(COCO_PERSON_KEYPOINT_NAMES)  # those that pycocotools knows sigmas for


def keypoint_names(name: str, checked: Optional[DatasetFacts] = None) -> Tuple[str, ...]:
    """A dataset's keypoints, by the metadata (a user may have set it) or the categories; or ()."""
    known = MetadataCatalog.get(name).get("keypoint_names")
    return tuple(known or (checked.keypoint_names if checked else ()))


def compare_keypoints(names: Mapping[str, Sequence[str]], strict: bool) -> None:
    """
    Args:
        names: of the keypoints, by dataset; the first is what the model learns, or has learned.
        strict: whether the same in another order is an error: in training, not after it.

    Raises:
        ValueError: see there.
    """
    known = [(name, list(points)) for name, points in names.items() if points]
    for name, points in known[1:]:
        first, learned = known[0]
        if points != learned:
            _differ(name, points, first, learned, strict)


def _differ(name: str, points: List[str], first: str, learned: List[str], strict: bool) -> None:
    reordered = sorted(points) == sorted(learned)
    message = (
        f"Dataset '{name}' has the keypoints {shown(points)} and '{first}' {shown(learned)}"
        f"{', the same in another order' if reordered else ''}. The model knows a keypoint by its "
        "place among them. Give both files the same order, or, where a file only names them "
        "wrongly, set keypoint_names and keypoint_flip_map of the dataset's metadata."
    )
    if reordered and strict:
        raise ValueError(message)
    logger.warning(f"{message} They are taken as they are numbered.")


def check_training_keypoints(name: str, checked: DatasetFacts, model: ModelFacts) -> None:
    """
    Raises:
        ValueError: names what does not fit, and the key to set.
    """
    key, number = model.keypoints
    names = keypoint_names(name, checked)
    where = f"dataset '{name}' ('{checked.source}')"
    if not names:
        raise ValueError(
            f"The model has keypoints ({setting_to(key, number)}), but the categories of {where} "
            'do not name any. Add "keypoints": [names] to them, or set keypoint_names and '
            "keypoint_flip_map of the dataset's metadata."
        )
    for count in {len(names), *checked.keypoints}:
        if count != number:
            raise ValueError(
                f"{where} has {count} keypoints, but the model has {setting_to(key, number)}. "
                f"Set {setting_to(key, count)}, or use another dataset."
            )
    if not checked.keypoints:
        raise ValueError(f"No annotation of {where} has keypoints, which the model needs ({key}).")


def check_mirrored(name: str, model: ModelFacts) -> None:
    """
    Whether mirrored images would be learned with sides swapped, once the metadata is set.

    Raises:
        ValueError: a name is there twice, and Detectron2 finds the places to swap by name.
    """
    metadata, names = MetadataCatalog.get(name), keypoint_names(name)
    if not (model.flip and model.keypoints[1] and names):
        return
    twice = [point for point, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"Dataset '{name}' has several keypoints of one name: {shown(twice)}. Images are "
            f"mirrored in training ({model.flip}), and Detectron2 finds by name which keypoint is "
            "which then. Give each its own name, or mirror no images."
        )
    pairs = metadata.get("keypoint_flip_map") or []
    lone = without_partner(names, pairs)
    if comm.is_main_process() and (lone or (len(names) > 1 and not pairs)):
        some = f"{shown(lone)} in no pair" if lone else "no pair"
        logger.warning(
            f"Images are mirrored in training ({model.flip}), and of the keypoints of dataset "
            f"'{name}' ({shown(names)}) there is {some} of left and right to swap then. If there "
            "should be, name them left_... and right_..., set keypoint_flip_map of the dataset's "
            "metadata, or mirror no images: sides are mixed up otherwise."
        )


def check_test_keypoints(name: str, checked: DatasetFacts, model: ModelFacts) -> None:
    """
    Raises:
        ValueError: names what does not fit, and the key to set.
    """
    key, number = model.keypoints
    where = f"dataset '{name}' ('{checked.source}')"
    if not number or not checked.keypoints:
        return
    if checked.keypoints != (number,):
        raise ValueError(
            f"{where} has {shown(checked.keypoints)} keypoints, but the model has "
            f"{setting_to(key, number)}."
        )
    key, sigmas = model.sigmas
    good = all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas)
    if len(sigmas or range(COCO_KEYPOINTS)) != number or not good:
        raise ValueError(
            f"{key} is {list(sigmas)}; it must be {number} numbers above 0, one a keypoint of "
            f"{where} (COCO's own, without the key, are {COCO_KEYPOINTS})."
        )
    names = keypoint_names(name, checked)
    if not sigmas and names and names != COCO_PERSON_KEYPOINT_NAMES:
        logger.warning(
            f"The keypoints of {where} are {shown(names)}, and without {key} they are scored with "
            "the sigmas of COCO's persons."
        )
