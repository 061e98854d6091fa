"""Images without labels: in folders, or of registered datasets, whose labels are not read."""

import json
import os
from typing import Any, Dict, Iterator, List, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .coco import is_own

Record = Dict[str, Any]
ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# beginnings of the keys of Detectron2's records that are labels, or proposals
LABELS = (
    "annotations", "sem_seg_", "pan_seg_", "segments_info", "proposal_", "neg_category_ids",
    "not_exhaustive_category_ids",
)  # fmt: skip
LOOKED_AT = 50  # files, of a dataset's, to see whether any is there


def find_images(sources: Sequence[str], key: str) -> List[Record]:
    """
    Args:
        sources: folders, looked through with the folders in them but for hidden ones; or names of
            registered datasets, of which a COCO file need not have annotations nor categories.
        key: that names them, for errors.

    Returns:
        Records with ``file_name``, and ``image_id``, ``width`` and ``height`` where they are known,
        in the same order on every machine; of a dataset that is no COCO file what else its records
        have, too, but for labels.

    Raises:
        ValueError: one is neither, has no image, or a folder that cannot be read; names it.
    """
    found: List[Record] = []
    for source in sources:
        records = _records(source, key)
        if not records:
            raise ValueError(f"{key} names '{source}', which has no images ({', '.join(ENDINGS)}).")
        found += records
    return found


def _records(source: str, key: str) -> List[Record]:
    if source in DatasetCatalog:
        records = _of_coco_file(source, key) if is_own(source) else _of_dataset(source, key)
        _check_there(records, source, key)
        return records
    if not os.path.isdir(source):
        raise ValueError(
            f"{key} names '{source}', which is neither a folder nor a registered dataset; give a "
            "folder of images, or --register-coco NAME JSON IMAGES and that name."
        )
    try:
        return [{"file_name": path, "image_id": path} for path in _walk(source)]
    except OSError as error:
        raise ValueError(
            f"{key} names '{source}', of which the folder '{error.filename}' cannot be read: "
            f"{error.strerror}."
        ) from error


def _walk(folder: str) -> Iterator[str]:
    seen = set()
    for path, folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder above leads round and round
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield os.path.join(path, name)


def _stop(error: OSError) -> None:
    """For os.walk, which by itself leaves out a folder that it cannot read."""
    raise error


def _of_dataset(name: str, key: str) -> List[Record]:
    try:
        records = DatasetCatalog.get(name)
    except Exception as error:  # of a function that may be anybody's
        raise ValueError(
            f"{key} names the dataset '{name}', which cannot be read: {type(error).__name__}: "
            f"{error}"
        ) from error
    return [{k: x for k, x in r.items() if not k.startswith(LABELS)} for r in records]


def _of_coco_file(name: str, key: str) -> List[Record]:
    path = MetadataCatalog.get(name).source_json_file
    try:
        return _listed(name, path)
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        raise ValueError(
            f"{key} names '{name}', whose file '{path}' has no list of images in COCO's format: "
            f"{type(error).__name__}: {error}"
        ) from error


def _listed(name: str, path: str) -> List[Record]:
    """The images that the COCO file of a registered dataset lists."""
    with PathManager.open(path, "r") as f:
        images = json.load(f)["images"]
    return [_image(image, MetadataCatalog.get(name).image_root) for image in images]


def images_of_test_set(records: Sequence[Record], name: str) -> List[str]:
    """
    Args:
        records: of :func:`find_images`.
        name: of a registered dataset.

    Returns:
        The files of these records that are the dataset's too, by whatever path; none where it has
        no COCO file, or one that cannot be read: who evaluates on it says why.
    """
    metadata = MetadataCatalog.get(name).as_dict()
    path = metadata.get("source_json_file") or metadata.get("json_file")
    if not path or "image_root" not in metadata:
        return []
    try:
        tested = [image["file_name"] for image in _listed(name, path)]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []
    # links are followed for files of the same name only: to follow one takes long
    names = {os.path.basename(file) for file in tested}
    own = [r["file_name"] for r in records if os.path.basename(r["file_name"]) in names]
    names = {os.path.basename(file) for file in own}
    real = {os.path.realpath(file) for file in tested if os.path.basename(file) in names}
    return [file for file in own if os.path.realpath(file) in real]


def _image(image: Record, root: str) -> Record:
    name = image["file_name"]
    sides = {k: image[k] for k in ("width", "height") if isinstance(image.get(k), int)}
    return {"file_name": os.path.join(root, name), "image_id": image.get("id", name), **sides}


def _check_there(records: List[Record], source: str, key: str) -> None:
    """A wrong folder, not a file or two that are missing: those are left out in training."""
    some = records[:: max(1, len(records) // LOOKED_AT)]
    if records and not any(PathManager.isfile(r["file_name"]) for r in some):
        raise ValueError(
            f"{key} names '{source}', whose images are not there: '{some[0]['file_name']}' is no "
            "file. Is the folder of its images the right one?"
        )
