"""A split of the training set to choose settings on, so that the test set stays unseen."""

import json
import os
from typing import Dict, List, Sequence, Tuple

from ...data.reading import open_coco
from ...data.split import take_folds
from ..common.result_files import write_text

Dataset = Tuple[str, str, str]  # NAME, JSON, IMAGES


def hold_out(
    datasets: Sequence[Sequence[str]],
    names: Sequence[str],
    folds: int,
    folder: str,
    key: str = "DATASETS.TRAIN",
) -> Dict[str, List[Dataset]]:
    """
    Divide training sets in COCO's format in two, by their images' names.

    Args:
        datasets: what ``--register-coco`` was given.
        names: of the training sets.
        folds: one of so many is held out.
        folder: for the new JSON files.
        key: where the names are from.

    Returns:
        The datasets to "train" and to "test" on.

    Raises:
        ValueError: a training set that is none of ``datasets``, or too few images or folds.
    """
    if folds < 2:
        raise ValueError(f"--folds is {folds}; it must be 2 or above.")
    given = {name: (json_file, images) for name, json_file, images in datasets}
    others = [name for name in names if name not in given]
    if others or not names:
        raise ValueError(
            f"{key} is {tuple(names)}, and only what --register-coco names can be "
            "divided: give --train and --test, datasets to choose settings on (never the one to "
            "report on)."
        )
    parts = {"train": set(range(1, folds)), "test": {0}}
    os.makedirs(folder, exist_ok=True)
    found: Dict[str, List[Dataset]] = {part: [] for part in parts}
    for name in names:
        content = open_coco(given[name][0])
        for part, take in parts.items():
            path = os.path.join(folder, f"{name}_{part}.json")
            write_text(path, json.dumps(take_folds(content, folds, take)))
            found[part].append((f"{name}_{part}", path, given[name][1]))
    return found
