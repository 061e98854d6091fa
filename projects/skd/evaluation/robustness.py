"""
Robustness against image corruptions: C. Michaelis et al., "Benchmarking Robustness in Object
Detection", 2019, arXiv 1907.07484.
"""

import copy
import statistics
import zlib
from typing import Any, Dict, Sequence

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
    """

    def __init__(self, cfg: CfgNode, corruption: str, severity: int, seed: int = 0):
        self.augmentations = T.AugmentationList(detection_utils.build_augmentation(cfg, False))
        self.format = cfg.INPUT.FORMAT
        self.corruption, self.severity, self.seed = corruption, severity, seed

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        record = copy.deepcopy(record)
        rgb = detection_utils.read_image(record["file_name"], "RGB")
        detection_utils.check_image_size(record, rgb)
        image_id = zlib.crc32(str(record["image_id"]).encode())
        kind = zlib.crc32(self.corruption.encode())
        rgb = corrupt(
            rgb, self.corruption, self.severity, (self.seed, kind, self.severity, image_id)
        )
        inputs = T.AugInput(rgb if self.format == "RGB" else rgb[:, :, ::-1])
        self.augmentations(inputs)
        image = np.ascontiguousarray(inputs.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(image)
        record.pop("annotations", None)
        return record


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
