"""What tools/slim_checkpoint.py does."""

import os
from collections import OrderedDict
from typing import Any, Dict

import torch

from ..modeling.load import DISTILLER_PREFIX
from ..runtime.torch_files import kind_of, load_tensors
from ..runtime.whole_files import write_whole


def slim(source: str, target: str) -> str:
    """
    Write a checkpoint's weights in half precision, without optimizer and distiller.

    Returns:
        What was written, for people.

    Raises:
        ValueError: the source holds no weights, or is the target.
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(source):
        what = "It is a folder, not a file" if os.path.isdir(source) else "No file"
        raise FileNotFoundError(f"{what}: '{source}'.")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(
            f"The source and the target are '{source}'; the target must be another file: here "
            "the optimizer's state and half of the digits would be lost."
        )
    checkpoint = load_tensors(source)
    weights = checkpoint.get("model", checkpoint)
    if not _are_weights(weights):
        raise ValueError(
            f"'{source}' holds no weights: it must be tensors by name, or have them as 'model'."
        )
    odd = {key: kind_of(value) for key, value in weights.items() if kind_of(value)}
    if odd:
        key, kind = next(iter(odd.items()))
        raise ValueError(f"'{source}': {key} is a {kind} tensor; it must be a plain one.")
    kept = {key: value for key, value in weights.items() if not _of_distiller(key)}
    if not kept:
        raise ValueError(f"'{source}' holds a distiller only, and nothing of a model.")
    state = OrderedDict((key, halve(value)) for key, value in kept.items())
    # the modules' versions, by which PyTorch and Detectron2 tell old checkpoints from new ones
    metadata = getattr(weights, "_metadata", None)
    if metadata is not None:
        state._metadata = OrderedDict((k, v) for k, v in metadata.items() if not _of_distiller(k))
    content = {"model": state, "iteration": checkpoint.get("iteration", 0)}
    write_whole(target, lambda f: torch.save(content, f))
    size = os.path.getsize(target) / 1e6
    return f"{target}: {len(state)} tensors, {size:.1f} MB" + _vanished(kept, state)


def _are_weights(weights: Any) -> bool:
    if not isinstance(weights, dict) or not weights:
        return False
    return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in weights.items())


def _vanished(before: Dict[str, torch.Tensor], after: Dict[str, torch.Tensor]) -> str:
    """Which tensors have values that half precision made 0, for people; "" for none."""
    halved = {key: x for key, x in before.items() if after[key].dtype != x.dtype}
    counts = {key: int(((after[key] == 0) & (x != 0)).sum()) for key, x in halved.items()}
    lost = {key: count for key, count in counts.items() if count}
    if not lost:
        return ""
    named = ", ".join(f"{key} ({count})" for key, count in list(lost.items())[:5])
    more = ", ..." if len(lost) > 5 else ""
    return (
        f"\n{sum(lost.values())} values of {len(lost)} tensors are too small for half precision "
        f"and 0 now: {named}{more}"
    )


def _of_distiller(name: str) -> bool:
    return f"{name}.".startswith(DISTILLER_PREFIX)


def halve(value: torch.Tensor) -> torch.Tensor:
    """
    The tensor in half precision; or as it is, where finite numbers would become infinite, or all of
    them are so small that most of their digits would be lost.
    """
    if not value.is_floating_point() or not value.numel() or value.itemsize <= 1:
        return value
    largest = value.abs().max()
    small = 0 < largest < torch.finfo(torch.float16).tiny
    half = value.half()
    return value if small or (half.isinf() & value.isfinite()).any() else half
