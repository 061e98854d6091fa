"""
The built-in dataset: colored shapes on cluttered backgrounds, in COCO instance format.

``skd_shapes_train`` and ``skd_shapes_val``, ``skd_shapes_shifted`` (the same classes in colors and
textures never seen in training), and two for choosing and pre-training: see :data:`SPLITS`.
:mod:`skd.data.draw_shapes` draws it, :mod:`skd.data.shapes_catalog` registers it.
"""

import os
from typing import Dict, NamedTuple

SHAPES_CLASSES = ["disk", "triangle", "square", "pentagon", "star", "cross"]

VERSION = 1  # part of the folder's name: raise it whenever a pixel changes
SIDE = 128  # pixels, height and width of every image


class Split(NamedTuple):
    """
    seed: of its images; num_images: how many; shifted: in the other domain's colors and textures.
    """

    seed: int
    num_images: int
    shifted: bool


SPLITS: Dict[str, Split] = {
    "skd_shapes_train": Split(seed=1, num_images=1600, shifted=False),
    "skd_shapes_val": Split(seed=2, num_images=300, shifted=False),
    "skd_shapes_shifted": Split(seed=3, num_images=300, shifted=True),
    # for choosing settings, so that results on _val stay out of the choice
    "skd_shapes_tune": Split(seed=4, num_images=150, shifted=False),
    # for students that do not start from nothing, as ImageNet's do not
    "skd_shapes_pretrain": Split(seed=5, num_images=1600, shifted=True),
}


def shapes_root() -> str:
    """The folder that holds a folder for each split."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    existing = root
    while existing and not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.access(existing or ".", os.W_OK):
        root = "datasets"
    return os.path.join(root, "skd_shapes", f"v{VERSION}")
