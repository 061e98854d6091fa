"""
Datasets of one's own in COCO's format: registered, checked, mended.

The user's file is never changed. What was mended is written once into iopath's cache folder, under
a name made of the content, and both the loader and the evaluator read that copy.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import threading
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Dict, Iterator, List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, load_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from ..runtime.whole_files import write_whole
from ..runtime.words import shown
from . import records
from .check import Report, examine
from .dataset_facts import DatasetFacts, facts_of, names_of
from .images import sample_images
from .mend import finish, renumber
from .mirror import flips
from .problems import merge_repeated, summary
from .reading import without_gc

logger = logging.getLogger(__name__)
SLOW_SECONDS = 5.0  # until a line says what takes so long


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--register-coco``, for every command that reads a config."""
    parser.add_argument(
        "--register-coco", nargs=3, action="append", default=[], metavar=("NAME", "JSON", "IMAGES"),
        help="make a dataset in COCO's format known as NAME (several times)",
    )  # fmt: skip


def register_coco(name: str, json_file: str, image_root: str, check: bool = True) -> None:
    """
    Register a dataset of one's own, as Detectron2's ``register_coco_instances`` does, and check it.
    What ``--register-coco`` does, which checks the datasets a run uses, once it is known which.

    Args:
        name: to use in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: annotations in COCO's format.
        image_root: the folder the images' ``file_name`` starts from.
        check: at once (in the main process), or when the dataset is first used.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the name is taken, or training would stop at something in the annotations, or
            at an image that is not there; lists what. ``tools/check_dataset.py`` looks further.
    """
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ValueError(  # files of results are named after it
            f"Dataset '{name}': a name may have letters, digits and _ - + . in it, nothing else."
        )
    if name in DatasetCatalog.list():
        raise ValueError(f"Dataset '{name}' is registered already: choose another name.")
    json_file = PathManager.get_local_path(json_file)  # of a URL, as Detectron2 reads it
    checked = check_one(name, json_file, image_root) if check and comm.is_main_process() else None
    DatasetCatalog.register(name, lambda: _load(name))
    MetadataCatalog.get(name).set(
        source_json_file=json_file, json_file=json_file, image_root=image_root,
        evaluator_type="coco",
    )  # fmt: skip
    if checked:
        use(name, checked)


def _load(name: str) -> List[Dict[str, Any]]:
    metadata = MetadataCatalog.get(name)
    options = metadata.get("check_options")
    if options is None or not PathManager.isfile(metadata.json_file):
        # nobody has, or on a machine that does not see the other's cache
        options = {k: v for k, v in (options or {}).items() if k != "anywhere"}
        use(name, check_by_name(name, **options, keep=True))
    if records.kept(name):
        return records.take(name)
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def is_own(name: str) -> bool:
    """Whether :func:`register_coco` has registered a dataset."""
    return name in DatasetCatalog and "source_json_file" in MetadataCatalog.get(name).as_dict()


def is_of_detectron2(name: str) -> bool:
    """Whether Detectron2's ``register_coco_instances`` has: only its loader reads such a set."""
    files = {"json_file", "image_root"} <= set(MetadataCatalog.get(name).as_dict())
    return files and DatasetCatalog[name].__module__ == load_coco_json.__module__


def is_registered_by_user(name: str) -> bool:
    """
    Whether a dataset is checked: one's own, and what else a user has registered by Detectron2's
    function. Its built-in sets are not: published files of COCO's size, which cost 20 s each.
    """
    built_in = any(name in splits for splits in builtin._PREDEFINED_SPLITS_COCO.values())
    return is_own(name) or (is_of_detectron2(name) and not built_in)


def source_of(name: str) -> str:
    """The user's file of a registered dataset; of a URL, where it is kept."""
    metadata = MetadataCatalog.get(name)
    json_file = os.fspath(metadata.get("source_json_file") or metadata.json_file)
    return PathManager.get_local_path(json_file)  # as Detectron2 reads it


def check_by_name(name: str, **options: Any) -> DatasetFacts:
    """:func:`check_one` for a dataset that is registered already, by whichever function."""
    metadata = MetadataCatalog.get(name)
    anywhere = (metadata.get("check_options") or {}).get("anywhere", not is_own(name))
    return check_one(name, source_of(name), metadata.image_root, anywhere=anywhere, **options)


def use(name: str, checked: DatasetFacts) -> None:
    """
    Let loader and evaluator of this process read what was checked. One that Detectron2 has
    registered, and that had to be mapped by name, is this module's from then on.
    """
    metadata = MetadataCatalog.get(name)
    if not is_own(name):
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: _load(name))
        metadata.set(source_json_file=checked.source)
    values = {"json_file": checked.json_file, "thing_classes": list(checked.classes)}
    for key, value in {**values, "check_options": checked.options}.items():
        if metadata.get(key) != value:
            metadata.__dict__.pop(key, None)  # set() refuses another value
            metadata.set(**{key: value})
    metadata.__dict__.pop("thing_dataset_id_to_contiguous_id", None)  # the loader's, of before
    if checked.keypoint_names and not metadata.get("keypoint_names"):
        names = list(checked.keypoint_names)
        metadata.set(keypoint_names=names)
        if "keypoint_flip_map" not in metadata.as_dict():
            metadata.set(keypoint_flip_map=flips(names))


def check_one(
    name: str,
    json_file: str,
    image_root: str,
    with_masks: bool = True,
    with_keypoints: bool = False,
    classes: Optional[Sequence[str]] = None,
    keep: bool = False,
    anywhere: bool = False,
) -> DatasetFacts:
    """
    Check and mend a dataset.

    Args:
        name, json_file, image_root: see :func:`register_coco`.
        with_masks, with_keypoints: see :func:`skd.data.mend.finish`.
        classes: names in training's order, to map this dataset's by name where they agree.
        keep: make the records now, for a dataset that is loaded soon.
        anywhere: images may be outside of ``image_root``, which need not be there.

    Raises:
        FileNotFoundError, ValueError: see :func:`register_coco`.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    if not os.path.exists(json_file) and not PathManager.isfile(json_file):
        raise FileNotFoundError(f"Dataset '{name}': no annotation file '{json_file}'.")
    if not anywhere and not _is_folder(image_root):
        raise FileNotFoundError(f"Dataset '{name}': no folder of images '{image_root}'.")
    records.drop(name)
    options = dict(
        with_masks=with_masks, with_keypoints=with_keypoints, classes=classes, anywhere=anywhere
    )
    with _log_if_slow(f"Checking dataset '{name}' ('{json_file}') ..."), without_gc():
        # a function of its own: what it read is gone before garbage is looked for again
        return _check_one(name, json_file, image_root, options, keep)


def _check_one(
    name: str, json_file: str, image_root: str, options: Dict[str, Any], keep: bool
) -> DatasetFacts:
    report = examine(json_file, image_root, anywhere=options["anywhere"])
    _stop_at_errors(name, report, json_file, image_root)
    finish(report.content, report.notes, options["with_masks"], options["with_keypoints"])
    _map_classes(name, json_file, report, options["classes"])
    problems = merge_repeated([*report.problems, *sample_images(report.content, image_root)])
    _stop_at_errors(name, report._replace(problems=problems), json_file, image_root)
    if problems:
        _warn_once(json_file, f"Dataset '{name}':\n{summary(problems, 8)}")
    copy = _write_copy(name, report.content) if report.notes else json_file
    files = frozenset(
        os.path.normpath(os.path.join(image_root, image["file_name"]))
        for image in report.content["images"]
    )
    checked = facts_of(report.content, json_file)._replace(
        json_file=copy, options=options, files=files
    )
    if keep:
        records.keep(name, report.content, image_root)
    return checked


def _is_folder(path: str) -> bool:
    try:
        return PathManager.isdir(path)
    except NotImplementedError:  # of a URL; images are read from files
        return False


@contextmanager
def _log_if_slow(text: str) -> Iterator[None]:
    timer = threading.Timer(SLOW_SECONDS, logger.info, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _stop_at_errors(name: str, report: Report, json_file: str, image_root: str) -> None:
    if report.errors:
        raise ValueError(
            f"Dataset '{name}' cannot be trained or evaluated on. '{json_file}' must be in COCO's "
            f"format, and its file names must start from '{image_root}':\n{summary(report.errors)}"
        )


@lru_cache(maxsize=None)  # register_coco checks a dataset, and check_datasets for the model again
def _warn_once(json_file: str, text: str) -> None:
    logger.warning(text)


def _map_classes(
    name: str, json_file: str, report: Report, classes: Optional[Sequence[str]]
) -> None:
    own = names_of(report.content)
    if classes is not None and to_map(own, classes):
        _warn_once(
            json_file,
            f"Dataset '{name}' has the classes {shown(own)}, training {shown(classes)}: mapped "
            "by name.",
        )
        renumber(report.content, classes, report.notes)


def to_map(own: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether classes are others' in another order, or some of them: names say which is which."""
    twice = len(set(own)) < len(own) or len(set(classes)) < len(classes)
    return list(own) != list(classes) and set(own) <= set(classes) and not twice


def different_classes(name: str, own: Sequence[str], classes: Sequence[str]) -> str:
    """What to say of a dataset's classes that cannot be mapped to training's, and what to do."""
    unknown = [c for c in own if c not in classes]
    why = f"do not agree by name: {shown(unknown)}", "Give the categories the same names."
    if not unknown and len(set(own)) == len(own) and not is_own(name):
        why = (
            "are in another order, or fewer",
            "Register its file by --register-coco under another name, which maps them by name.",
        )
    elif not unknown:
        why = "are not each there once", why[1]
    return (
        f"Dataset '{name}' has {len(own)} classes ({shown(own)}) and training {len(classes)} "
        f"({shown(classes)}), and they {why[0]}. A class is known to the model by its place among "
        f"them. {why[1]}"
    )


def _write_copy(name: str, content: Dict[str, Any]) -> str:
    """The mended copy's path. The same content has the same path, whoever writes it."""
    text = json.dumps(content).encode()
    folder = os.path.join(get_cache_dir(), "skd_mended")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.json")
    if not os.path.isfile(path):
        write_whole(path, lambda f: f.write(text))  # several processes may do so at once
    _warn_once(path, f"Dataset '{name}' is read from a mended copy: '{path}'.")
    return path
