"""What a run was made of, so that it can be made again."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

import detectron2
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .weights_file import without_query

logger = logging.getLogger(__name__)

FILE = "runs.jsonl"
LAUNCH_VARIABLE = "SKD_LAUNCH_ID"  # set by skd.engine.launch
# Whatever a dataset's folder is on, a run starts soon.
SECONDS_FOR_IMAGES = 5.0
MOST_IMAGES = 500_000
PACKAGES = ("torch", "torchvision", "numpy", "fvcore", "pycocotools", "opencv-python", "timm")


@dataclass
class RunFacts:
    """
    What a run is made of, as who starts it knows.

    Attributes:
        datasets: names of those trained and tested on.
        seed: of the run.
        config: nested.
        kind: of run, in a few words; one is resumed as what it was only.
        files: further files whose content matters, by what they are.
        parts: what further parts are made from, by what they are: nested configs.
        notes: of keys of the config that change what is learned in this run, though not in every
            one: what to say of them.
    """

    datasets: Sequence[str]
    seed: int
    config: Optional[Mapping[str, Any]] = None
    kind: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def describe_run(facts: RunFacts) -> Optional[Dict[str, Any]]:
    """
    Command, seed, versions, git commit, SHA-256 of files, fingerprints of the datasets and the
    config.

    Returns:
        The record, in the main process; None in the others.
    """
    if not comm.is_main_process():
        return None
    record: Dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "processes": comm.get_world_size(),
        "seed": facts.seed,
        "kind": facts.kind,
        "launch": launch_id(),
        "versions": versions(),
        "git": git_state(),
        "datasets": {name: _or_why(fingerprint, name) for name in facts.datasets},
        "files": {
            name: {"path": path, **_or_why(_hash, path)} for name, path in facts.files.items()
        },
    }
    if facts.parts:
        record["parts"] = {name: flatten(config) for name, config in facts.parts.items()}
    if facts.config is not None:
        record["config"] = flatten(facts.config)
    return record


def launch_id() -> Optional[str]:
    """The id that all processes and restarts of a launch by torchrun share; None without one."""
    return os.environ.get(LAUNCH_VARIABLE)


def _or_why(describe: Callable[[str], Dict[str, Any]], what: str) -> Dict[str, Any]:
    """A record never stops a run: what cannot be read is described by the error."""
    try:
        return describe(what)
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def _hash(path: str) -> Dict[str, str]:
    return {"sha256": file_sha256(without_query(path))}


def append_record(output_dir: str, record: Optional[Dict[str, Any]]) -> None:
    """
    Append a record to ``runs.jsonl``, next to Detectron2's ``config.yaml`` and ``log.txt``. Where
    that cannot be done, a warning says so and the run goes on.

    Args:
        output_dir: of the run.
        record: of :func:`describe_run`; None, as in other processes than the main one, for none.
    """
    if record is None:
        return
    try:
        PathManager.mkdirs(output_dir)
        path = os.path.join(output_dir, FILE)
        start = "\n" if _ends_in_half_a_line(path) else ""
        with PathManager.open(path, "a") as f:
            f.write(start + json.dumps(record, default=str) + "\n")
    except Exception as error:  # a remote folder's handler may raise anything
        logger.warning(f"This run has no line in '{output_dir}/{FILE}': {error}")


def _ends_in_half_a_line(path: str) -> bool:
    """Whether a killed run left half a line at the end: what is appended there would be lost."""
    try:
        with PathManager.open(path, "rb") as f:
            f.seek(-1, os.SEEK_END)
            return f.read(1) != b"\n"
    except Exception:  # no file yet, or an empty one; a remote folder's handler may raise anything
        return False


def read_records(output_dir: str) -> List[Dict[str, Any]]:
    """
    The lines of ``runs.jsonl``; none where it cannot be read. Half a line of a killed run is left
    out, and so are lines of another shape, with a warning.
    """
    try:
        with PathManager.open(os.path.join(output_dir, FILE), "r") as f:
            lines = f.readlines()
    except Exception:
        return []
    records, strange = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        except RecursionError:
            record = None
        if _is_record(record):
            records.append(record)
        else:
            strange.append(str(number))
    if strange:
        logger.warning(
            f"'{output_dir}/{FILE}' has lines that are no record of a run, and they are ignored: "
            f"{', '.join(strange[:5])}."
        )
    return records


# What is read of a record, and what it is.
_SHAPE = {
    "config": dict, "datasets": dict, "files": dict, "processes": int, "run": str, "start": int,
    "kind": str, "launch": (str, type(None)), "parts": dict,
}  # fmt: skip


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and all(isinstance(record[k], kind) for k, kind in _SHAPE.items() if k in record)
        and all(isinstance(x, dict) for x in record.get("datasets", {}).values())
        and all(isinstance(x, dict) for x in record.get("files", {}).values())
        and all(isinstance(x, dict) for x in record.get("parts", {}).values())
        and all(isinstance(y, str) for x in record.get("files", {}).values() for y in x.values())
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    """A nested config as one mapping with dotted keys, of what JSON has."""
    flat: Dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [flatten(v) if isinstance(v, Mapping) else _plain(v) for v in value]
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return type(value).__qualname__


def changes(
    before: Dict[str, Any],
    now: Dict[str, Any],
    matters: Callable[[str], bool],
    notes: Mapping[str, str],
) -> List[str]:
    """
    What differs between two records and matters for what is learned, as "KEY: old -> new". What one
    of them does not say is no change.

    Args:
        matters: whether a key of the config does.
        notes: see :class:`RunFacts`.
    """
    configs = before.get("config"), now.get("config")
    found = _changed_keys(*configs, lambda key: key in notes or matters(key), notes)
    for name, new in now.get("parts", {}).items():
        old = before.get("parts", {}).get(name)
        found += [f"the {name}'s {change}" for change in _changed_keys(old, new, matters, {})]
    for name, new in now.get("files", {}).items():
        old = before.get("files", {}).get(name, {})
        if old.get("sha256") and new.get("sha256") and old["sha256"] != new["sha256"]:
            found.append(
                f"the {name}'s file: '{old.get('path')}' ({old['sha256'][:8]}) -> '{new['path']}' "
                f"({new['sha256'][:8]})"
            )
    for name, new in now.get("datasets", {}).items():
        old = before.get("datasets", {}).get(name, {})
        for part in ("annotations", "images"):
            if part in old and part in new and old[part] != new[part]:
                found.append(f"the {part} of dataset '{name}': other content under the name")
    if before.get("processes", now["processes"]) != now["processes"]:
        found.append(f"number of processes: {before['processes']} -> {now['processes']}")
    return found


def _changed_keys(
    old: Optional[Dict[str, Any]],
    new: Optional[Dict[str, Any]],
    matters: Callable[[str], bool],
    notes: Mapping[str, str],
) -> List[str]:
    if old is None or new is None:
        return []
    new = json.loads(json.dumps(new, default=str))  # as the old one was read
    nothing = "(not there)"
    pairs = {k: (old.get(k, nothing), new.get(k, nothing)) for k in sorted({*old, *new})}
    return [
        f"{k}: {a!r:.200} -> {b!r:.200}{notes.get(k, '')}"
        for k, (a, b) in pairs.items()
        if a != b and matters(k)
    ]


def versions() -> Dict[str, str]:
    """Releases of what a run's numbers depend on, as far as it is installed; the GPU, if any."""
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
    """Commit of the checkout this file is in, and whether files were changed; {} without one."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*args):
        done = subprocess.run(
            ["git", "-C", here, *args], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a slow folder
        return {}
    return {"commit": commit, "changed": bool(changed)} if commit else {}


def file_sha256(path: str) -> str:
    """SHA-256 of a file's content, a block at a time: it need not fit into memory."""
    digest = hashlib.sha256()
    with PathManager.open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(dataset: str) -> Dict[str, Any]:
    """
    The names of a dataset's classes, where they are known. SHA-256 of its annotation file, and of
    its images' names and sizes (their content would take too long to read); of a folder's images
    where it is no name but a folder. Without the files where its metadata names none; without the
    images where looking at them takes more than ``SECONDS_FOR_IMAGES``, as on a network folder.
    """
    metadata = MetadataCatalog.get(dataset).as_dict()
    found: Dict[str, Any] = {}
    if metadata.get("thing_classes"):
        found["classes"] = list(metadata["thing_classes"])
    json_file, root = metadata.get("json_file"), metadata.get("image_root", dataset)
    if json_file and PathManager.isfile(json_file):
        found["annotations"] = file_sha256(json_file)
    if root and os.path.isdir(root):
        files = _names_and_sizes(root)
        if files is not None:
            found["images"] = hashlib.sha256("".join(files).encode(errors="replace")).hexdigest()
    return found


def _names_and_sizes(root: str) -> Optional[List[str]]:
    """A line for each file below a folder, sorted; None if time runs out."""
    end = time.monotonic() + SECONDS_FOR_IMAGES
    lines, folders = [], [root]
    while folders:
        for entry in _entries(folders.pop()):
            if time.monotonic() > end or len(lines) > MOST_IMAGES:
                return None
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                lines.append(f"{os.path.relpath(entry.path, root)} {_size(entry)}\n")
    return sorted(lines)


def _entries(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # not ours to read, or gone meanwhile: what can be seen is compared
        return


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere
        return -1
