"""What a run was made of, so that it can be made again."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any, Dict, Sequence

import detectron2
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

FILE = "runs.jsonl"
PACKAGES = ("torch", "torchvision", "numpy", "fvcore", "pycocotools", "opencv-python", "timm")


def write_record(output_dir: str, model: nn.Module, datasets: Sequence[str], seed: int) -> None:
    """
    Append a line to ``runs.jsonl``, next to Detectron2's ``config.yaml`` and ``log.txt``: command,
    seed, versions, git commit, SHA-256 of the teacher's file, fingerprints of the data sets.

    Args:
        output_dir: of the run.
        model: a DistillRCNN, or any other model.
        datasets: names of those trained and tested on.
        seed: of the run.
    """
    if not comm.is_main_process():
        return
    record: Dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "processes": comm.get_world_size(),
        "seed": seed,
        "versions": versions(),
        "git": git_state(),
        "datasets": {name: fingerprint(name) for name in datasets},
    }
    weights = getattr(getattr(model, "teacher", None), "weights", "")
    if weights:
        record["teacher"] = {"weights": weights, "sha256": file_sha256(weights)}
    PathManager.mkdirs(output_dir)
    with PathManager.open(os.path.join(output_dir, FILE), "a") as f:
        f.write(json.dumps(record) + "\n")


def versions() -> Dict[str, str]:
    found = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
        found["gpu"] = torch.cuda.get_device_name()
    return found


def git_state() -> Dict[str, Any]:
    """Commit of this project's checkout, and whether files were changed; empty outside of one."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*args):
        done = subprocess.run(["git", "-C", here, *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git here
        return {}
    return {"commit": commit, "changed": bool(changed)} if commit else {}


def file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with PathManager.open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(dataset: str) -> Dict[str, str]:
    """
    SHA-256 of a data set's annotation file, and of its images' names and sizes (their content
    would take too long to read). Empty for one whose metadata names no files.
    """
    metadata = MetadataCatalog.get(dataset).as_dict()
    found = {}
    json_file, root = metadata.get("json_file"), metadata.get("image_root")
    if json_file and PathManager.isfile(json_file):
        found["annotations"] = file_sha256(json_file)
    if root and os.path.isdir(root):
        digest = hashlib.sha256()
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                size = os.path.getsize(path)
                digest.update(f"{os.path.relpath(path, root)} {size}\n".encode())
        found["images"] = digest.hexdigest()
    return found
