"""Weights: of a teacher all or none, of a student never into the distiller by a likely name."""

import functools
import os
from typing import Any, Dict, Optional

import torch
from detectron2.checkpoint import detection_checkpoint
from torch import nn

from ..config.naming import called
from ..distillers.base import DISTILLER_MARK
from ..runtime.checkpoint import SafeCheckpointer
from ..runtime.downloads import is_remote
from ..runtime.weights_file import without_query

DISTILLER_PREFIX = "distiller."  # keys a distilled student's checkpoint may have on top


def spare_distiller() -> None:
    """
    Let Detectron2's matching heuristics (of backbones' checkpoints) overlook distillers.

    They load a checkpoint's ``norm.weight`` into whatever ends so, and stop if two parameters do:
    the norms of non-local blocks would be overwritten, or keep a student from loading that loads
    without distillation.

    Why the function is wrapped in memory: users load with the stock DetectionCheckpointer, which
    passes ``model.state_dict()`` to it before anything of the model is asked again, and the keys
    of that must stay as they are. A checkpointer of our own would protect only those who know of
    it. Only the parts of a state whose metadata says that they are a :class:`Distiller`'s are left
    out, so other models' states go through as before, whatever their names. Done once.
    """
    align = detection_checkpoint.align_and_update_state_dicts
    if getattr(align, "spares_distiller", False):
        return

    @functools.wraps(align)
    def align_student(
        model_state_dict: Dict[str, torch.Tensor], ckpt_state_dict: Dict[str, Any], *args, **kwargs
    ) -> Dict[str, Any]:
        metadata = getattr(model_state_dict, "_metadata", {})
        spared = tuple(f"{name}." for name, known in metadata.items() if DISTILLER_MARK in known)
        student = {k: v for k, v in model_state_dict.items() if not k.startswith(spared)}
        return align(student, ckpt_state_dict, *args, **kwargs)

    align_student.spares_distiller = True
    detection_checkpoint.align_and_update_state_dicts = align_student


def check_exists(weights: str) -> None:
    """Raise FileNotFoundError for a file that is not there; URLs are for the loader to try."""
    if not is_remote(weights) and not os.path.isfile(without_query(weights)):
        raise FileNotFoundError(
            f"Teacher checkpoint '{weights}' ({called('MODEL.TEACHER.WEIGHTS')}) not found."
        )


class _StrictCheckpointer(SafeCheckpointer):
    """Loads what the stock checkpointer loads, and refuses where that one warns."""

    def _log_incompatible_keys(self, incompatible) -> None:
        misshapen = [k for k, _, _ in incompatible.incorrect_shapes]
        problems = {
            "missing in the checkpoint": [
                k for k in incompatible.missing_keys if k not in misshapen
            ],
            "unexpected in the checkpoint": [
                k for k in incompatible.unexpected_keys if not k.startswith(DISTILLER_PREFIX)
            ],
            "of another shape": [
                f"{k}: {tuple(there)} in the checkpoint, {tuple(here)} in the model"
                for k, there, here in incompatible.incorrect_shapes
            ],
        }
        lines = [
            f"  {len(keys)} {what}:\n" + "\n".join(f"    {k}" for k in keys)
            for what, keys in problems.items()
            if keys
        ]
        if lines:
            raise ValueError("\n".join(lines))


def load_in_full(
    model: nn.Module,
    weights: str,
    key: Optional[str] = None,
    config_key: Optional[str] = None,
) -> None:
    """
    Load a checkpoint of any kind Detectron2 reads, every key of it into every key of the model.

    Args:
        model: any; keys of a distiller in the checkpoint are left out.
        weights: the file or URL.
        key, config_key: what names the weights and the model's config, for errors; by default the
            teacher's.

    Raises:
        FileNotFoundError: no such file, or a URL that cannot be fetched.
        ValueError: the two do not match; names every missing, unexpected and misshapen key.
    """
    if key is None:
        check_exists(weights)
    key = key or called("MODEL.TEACHER.WEIGHTS")
    config_key = config_key or called("MODEL.TEACHER.CONFIG_FILE")
    try:
        _StrictCheckpointer(model).load(weights)
    except OSError as error:
        raise FileNotFoundError(
            f"Checkpoint '{weights}' ({key}) cannot be read: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"Checkpoint '{weights}' ({key}) does not match its model:\n{error}\n"
            f"Check that it belongs to the config of {config_key}."
        ) from None
