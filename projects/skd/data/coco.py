"""Data sets of one's own in COCO's format, and whether a model fits them."""

import json
import logging
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ..config import is_distilling
from .check import check_content, masks_missing, read_coco, summary

logger = logging.getLogger(__name__)


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """
    Register a data set of one's own: Detectron2's ``register_coco_instances``, after a look at
    what it is given. What ``--register-coco`` does.

    Args:
        name: to use in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: annotations in COCO's format.
        image_root: the folder the images' ``file_name`` starts from.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the name is taken, or training would stop at something in the annotations, or
            at an image that is not there; lists what. ``tools/check_dataset.py`` looks further.
    """
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise ValueError(  # files of results are named after it
            f"Data set '{name}': a name may have letters, digits and _ - + . in it, nothing else."
        )
    if name in DatasetCatalog.list():
        raise ValueError(f"Data set '{name}' is registered already: choose another name.")
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"Data set '{name}': no annotation file '{json_file}'.")
    if not PathManager.isdir(image_root):
        raise FileNotFoundError(f"Data set '{name}': no folder of images '{image_root}'.")
    content, problems = read_coco(json_file)
    problems = problems or check_content(content, image_root, read_images=False)
    errors = [p for p in problems if p.level == "error"]
    if errors:
        raise ValueError(
            f"Data set '{name}' cannot be trained or evaluated on. '{json_file}' must be in COCO's "
            f"format, and its file names must start from '{image_root}':\n{summary(errors)}"
        )
    if problems:
        logger.warning(f"Data set '{name}':\n{summary(problems, 3)}")
    metadata = {"thing_classes": _classes(content), "masks_missing": masks_missing(content)}
    register_coco_instances(name, metadata, json_file, image_root)


def _classes(content: Dict[str, Any]) -> List[str]:
    """Names of the classes, in Detectron2's order: by id."""
    return [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]


def check_classes(cfg: CfgNode) -> None:
    """
    Compare the number of classes of a YAML config's model with that of its data sets.

    Raises:
        ValueError: they differ; names both, and the key to set.
    """
    model = cfg.MODEL
    architecture = (
        model.STUDENT.META_ARCHITECTURE if is_distilling(cfg) else model.META_ARCHITECTURE
    )
    if architecture in ("GeneralizedRCNN", "PanopticFPN"):
        heads = [("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES)]
        if model.ROI_MASK_HEAD.get("POINT_HEAD_ON", False):
            heads.append(("MODEL.POINT_HEAD.NUM_CLASSES", model.POINT_HEAD.NUM_CLASSES))
    elif architecture == "RetinaNet":
        heads = [("MODEL.RETINANET.NUM_CLASSES", model.RETINANET.NUM_CLASSES)]
    else:
        heads = []  # class-agnostic, like RPN alone, or not ours to know
    _check(heads, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    if model.MASK_ON and architecture in ("GeneralizedRCNN", "PanopticFPN"):
        _check_masks("MODEL.MASK_ON True", cfg.DATASETS.TRAIN)


def check_classes_lazy(cfg: DictConfig) -> None:
    """The same for a LazyConfig whose ``model`` is the plain student."""
    heads = [
        (f"model.{key}", OmegaConf.select(cfg.model, key))
        for key in ("roi_heads.num_classes", "num_classes")
        if OmegaConf.select(cfg.model, key) is not None
    ]
    names = lazy_datasets(cfg)
    _check(heads, names)
    if OmegaConf.select(cfg.model, "roi_heads.mask_head") is not None:
        _check_masks("model.roi_heads.mask_head", names)


def lazy_datasets(cfg: DictConfig) -> List[str]:
    """Names of the data sets a LazyConfig trains and tests on."""
    names: List[str] = []
    for split in ("train", "test"):
        value = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names")
        names += [value] if isinstance(value, str) else list(value or ())
    return names


def _check_masks(key: str, datasets: Sequence[str]) -> None:
    for dataset in datasets:
        missing = MetadataCatalog.get(dataset).get("masks_missing", 0)
        if missing:
            raise ValueError(
                f"{missing} annotations of data set '{dataset}' "
                f"('{MetadataCatalog.get(dataset).json_file}') have no segmentation, which the "
                f"model needs ({key}). Train a detector of boxes, or complete the data set."
            )


def _check(heads: Sequence[Tuple[str, int]], datasets: Sequence[str]) -> None:
    for dataset in datasets:
        classes = thing_classes(dataset)
        for key, number in heads:
            if classes is not None and number != len(classes):
                shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
                raise ValueError(
                    f"Data set '{dataset}' has {len(classes)} classes ({shown}), but the model "
                    f"has {key} {number}. Set {key} {len(classes)}, or use another data set."
                )


def thing_classes(dataset: str) -> Optional[Sequence[str]]:
    """Names of a registered data set's classes, without reading its images; None if unknown."""
    metadata: Dict[str, Any] = MetadataCatalog.get(dataset).as_dict()
    if "thing_classes" in metadata:
        return metadata["thing_classes"]
    json_file = metadata.get("json_file")
    if metadata.get("evaluator_type") == "coco" and json_file and PathManager.isfile(json_file):
        with PathManager.open(json_file) as f:
            return _classes(json.load(f))
    return None
