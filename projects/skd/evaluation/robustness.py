"""
Robustness against image corruptions: C. Michaelis et al., "Benchmarking Robustness in Object
Detection", 2019, arXiv 1907.07484.
"""

import copy
import statistics
import zlib
from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T

# the benchmark's fifteen, by group
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)
_LEAST = 32  # pixels a side, of the library


def corrupt(image: np.ndarray, corruption: str, severity: int, seed: Sequence[int]) -> np.ndarray:
    """
    Args:
        image: RGB, uint8 (H, W, 3).
        corruption: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: whole numbers; the same ones give the same image. Global random state is left alone.

    Returns:
        RGB, uint8 (H, W, 3).

    Raises:
        ImportError: the package imagecorruptions-imaug is not installed.
        ValueError: an unknown corruption or severity.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"No corruption '{corruption}' of severity {severity!r}: corruptions are "
            f"{', '.join(CORRUPTIONS)}, severities 1 to 5."
        )
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(
            "Corruptions come from a package that is missing: pip install imagecorruptions-imaug"
        ) from error

    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    # these two draw from generators of their own, unless told
    own = {"seed": number} if corruption in ("impulse_noise", "glass_blur") else {}
    h, w = image.shape[:2]
    below, right = max(_LEAST - h, 0), max(_LEAST - w, 0)
    padded = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    state = np.random.get_state()
    try:
        np.random.seed(number)
        out = imagecorruptions.corrupt(padded, severity, corruption, **own)
    finally:
        np.random.set_state(state)
    return np.ascontiguousarray(out[:h, :w])


class CorruptedMapper:
    """
    Detectron2's ``DatasetMapper`` for testing, with a corruption of the image as it is in the file.
    Runs in the loader's workers; what becomes of an image depends on the seed and its id only.

    It maps for several models at once, so that an image is corrupted once for all of them: that
    costs more than a small model's forward.

    Args:
        cfgs: of the models.
        corruption, severity: of :func:`corrupt`.
        seed: of the whole set of images.
    """

    def __init__(self, cfgs: Sequence[CfgNode], corruption: str, severity: int, seed: int = 0):
        self.views = [
            (T.AugmentationList(detection_utils.build_augmentation(cfg, False)), cfg.INPUT.FORMAT)
            for cfg in cfgs
        ]
        self.corruption, self.severity, self.seed = corruption, severity, seed

    def __call__(self, record: Dict[str, Any]) -> List[Dict[str, Any]]:
        """The record with the image that each model takes, in the order of ``cfgs``."""
        rgb = detection_utils.read_image(record["file_name"], "RGB")
        record = {key: value for key, value in record.items() if key != "annotations"}
        detection_utils.check_image_size(record, rgb)
        image_id = zlib.crc32(str(record["image_id"]).encode())
        kind = zlib.crc32(self.corruption.encode())
        rgb = corrupt(
            rgb, self.corruption, self.severity, (self.seed, kind, self.severity, image_id)
        )
        return [{**copy.deepcopy(record), "image": _view(rgb, *view)} for view in self.views]


def _view(rgb: np.ndarray, augmentations: T.AugmentationList, order: str) -> torch.Tensor:
    """What a model takes of an image: resized, in its order of colors, (3, h, w)."""
    inputs = T.AugInput(rgb if order == "RGB" else rgb[:, :, ::-1])
    augmentations(inputs)
    return torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))


def mean_performance(clean: float, corrupted: Dict[str, Dict[int, float]]) -> Dict[str, float]:
    """
    Args:
        clean: P, AP on the images as they are.
        corrupted: AP by corruption and severity.

    Returns:
        ``mPC``, mean performance under corruption: over severities, then over corruptions
        (equation 1); ``rPC`` = mPC / P in percent (equation 2), nan where P is 0.
    """
    means = [statistics.mean(by.values()) for by in corrupted.values()]
    mpc = statistics.mean(means)
    return {"mPC": mpc, "rPC": 100 * mpc / clean if clean else float("nan")}
