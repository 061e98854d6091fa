"""What of a model has to fit datasets, of either form of config."""

from typing import Any, NamedTuple, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.data.transforms import RandomFlip
from omegaconf import DictConfig, OmegaConf

from ..config.lazy_config import made_by

_AUGMENTATIONS = "dataloader.train.mapper.augmentations"


class ModelFacts(NamedTuple):
    """
    What a model needs of the datasets: pairs of a key and its value, as the user writes them.

    Attributes:
        heads: of heads that classify: numbers of classes.
        masks: the key that makes it predict masks; "" if it does not.
        mask_format: "polygon" or "bitmask", how the loader hands masks on.
        keypoints: number of keypoints, 0 for none.
        sigmas: of the keypoints, for the evaluation.
        flip: what mirrors images in training, as the user writes it; "" if nothing does.
    """

    heads: Tuple[Tuple[str, int], ...] = ()
    masks: str = ""
    mask_format: Tuple[str, str] = ("INPUT.MASK_FORMAT", "polygon")
    keypoints: Tuple[str, int] = ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 0)
    sigmas: Tuple[str, Sequence[float]] = ("TEST.KEYPOINT_OKS_SIGMAS", ())
    flip: str = ""


def yaml_model(cfg: CfgNode) -> ModelFacts:
    """The facts of a YAML config that does not distil."""
    model, name = cfg.MODEL, cfg.MODEL.META_ARCHITECTURE
    if name == "RetinaNet":
        return ModelFacts((("MODEL.RETINANET.NUM_CLASSES", model.RETINANET.NUM_CLASSES),))
    if name not in ("GeneralizedRCNN", "PanopticFPN"):
        return ModelFacts()  # class-agnostic, like an RPN, or not known here
    heads = [("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES)]
    if model.ROI_MASK_HEAD.get("POINT_HEAD_ON", False):
        heads.append(("MODEL.POINT_HEAD.NUM_CLASSES", model.POINT_HEAD.NUM_CLASSES))
    points = model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if model.KEYPOINT_ON else 0
    return ModelFacts(
        tuple(heads),
        "MODEL.MASK_ON True" if model.MASK_ON else "",
        ("INPUT.MASK_FORMAT", cfg.INPUT.MASK_FORMAT),
        ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", points),
        ("TEST.KEYPOINT_OKS_SIGMAS", tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)),
        "INPUT.RANDOM_FLIP horizontal" if cfg.INPUT.RANDOM_FLIP == "horizontal" else "",
    )


def lazy_model(cfg: DictConfig) -> ModelFacts:
    """The facts of a LazyConfig that does not distil."""

    def find(key: str, default: Any) -> Any:
        value = OmegaConf.select(cfg, key)
        return default if value is None else value

    keys = ("model.roi_heads.num_classes", "model.num_classes")
    heads = tuple((key, find(key, None)) for key in keys if isinstance(find(key, None), int))
    masks, mapper = "model.roi_heads.mask_head", "dataloader.train.mapper.instance_mask_format"
    points = "model.roi_heads.keypoint_head.num_keypoints"
    sigmas = "dataloader.evaluator.kpt_oks_sigmas"
    return ModelFacts(
        heads,
        masks if find(masks, None) is not None else "",
        (mapper, find(mapper, "polygon")),
        (points, find(points, 0)),
        (sigmas, tuple(find(sigmas, ()))),
        _AUGMENTATIONS if any(map(_mirrors, find(_AUGMENTATIONS, ()))) else "",
    )


def _mirrors(augmentation: Any) -> bool:
    node = augmentation if isinstance(augmentation, DictConfig) else {}
    return made_by(node) is RandomFlip and node.get("horizontal", True)
