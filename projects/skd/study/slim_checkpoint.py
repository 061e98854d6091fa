"""What tools/slim_checkpoint.py does."""

import os
from collections import OrderedDict

import torch

from ..modeling.load import DISTILLER_PREFIX
from ..runtime.safe_files import load_tensors


def slim(source: str, target: str) -> str:
    """
    Write a checkpoint's weights in half precision, without optimizer and distiller.

    Returns:
        What was written, for people.

    Raises:
        ValueError: the source holds no weights.
        FileNotFoundError: there is no such file.
    """
    if not os.path.exists(source):
        raise FileNotFoundError(f"No file '{source}'.")
    checkpoint = load_tensors(source)
    weights = checkpoint.get("model", checkpoint)
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"'{source}' holds no weights: it needs a dict of tensors, or 'model'.")
    state = OrderedDict(
        (key, halve(value)) for key, value in weights.items() if not _of_distiller(key)
    )
    # the modules' versions, by which PyTorch and Detectron2 tell old checkpoints from new ones
    metadata = getattr(weights, "_metadata", None)
    if metadata is not None:
        state._metadata = OrderedDict((k, v) for k, v in metadata.items() if not _of_distiller(k))
    torch.save({"model": state, "iteration": checkpoint.get("iteration", 0)}, target)
    return f"{target}: {len(state)} tensors, {os.path.getsize(target) / 1e6:.1f} MB"


def _of_distiller(name: str) -> bool:
    return f"{name}.".startswith(DISTILLER_PREFIX)


def halve(value: torch.Tensor) -> torch.Tensor:
    """In half precision, or as it is where finite numbers would become infinite."""
    if not value.is_floating_point():
        return value
    half = value.half()
    return value if (half.isinf() & value.isfinite()).any() else half
