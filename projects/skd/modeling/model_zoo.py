"""Configs and checkpoints by their name in Detectron2's model zoo."""

import difflib
import glob
import os
from typing import List

from detectron2 import model_zoo
from detectron2.utils.file_io import PathManager

from ..config.naming import called
from ..runtime.downloads import CATALOG, is_file, is_url


def _zoo_folder() -> str:
    return os.path.join(os.path.dirname(model_zoo.__file__), "configs")


def zoo_names() -> List[str]:
    """Names of all configs in Detectron2's model zoo."""
    root = _zoo_folder()
    files = glob.glob(os.path.join(root, "**", "*"), recursive=True)
    return sorted(os.path.relpath(f, root) for f in files if f.endswith((".yaml", ".py")))


def find_config(name: str) -> str:
    """
    Args:
        name: a file, or a name in Detectron2's model zoo.

    Returns:
        Path of the config file.

    Raises:
        FileNotFoundError: neither; names the closest ones in the zoo.
        ValueError: no name, or one of weights.
    """
    if not name:
        raise ValueError(
            f"{called('MODEL.TEACHER.CONFIG_FILE')} is empty: give a config file or a model-zoo "
            "name, e.g. COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml."
        )
    if name.startswith(CATALOG):
        raise ValueError(
            f"{called('MODEL.TEACHER.CONFIG_FILE')} is '{name}', a name of weights; it must be a "
            "config's. The weights go to --teacher-weights."
        )
    if is_url(name):  # what it is based on is beside it
        return name
    if is_file(name):
        return PathManager.get_local_path(name)
    names = zoo_names()
    if name in names:
        return os.path.join(_zoo_folder(), name)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
    raise FileNotFoundError(
        f"Unknown teacher '{name}': not a file here, and not in Detectron2's model zoo. "
        f"Closest there: {', '.join(close) or 'none'}."
    )


def zoo_weights(name: str) -> str:
    """
    The URL of the zoo's checkpoint for one of its configs.

    Raises:
        ValueError: it has none.
    """
    try:
        return model_zoo.get_checkpoint_url(name)
    except RuntimeError:
        raise ValueError(
            f"{called('MODEL.TEACHER.WEIGHTS')} is empty, and the model zoo has no checkpoint for "
            f"'{name}'. Give the teacher's checkpoint (--teacher-weights)."
        ) from None
