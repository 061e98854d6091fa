"""Whether datasets and model fit each other: told before training, by one process to all."""

import logging
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ..config import run_settings, student_config
from ..config.lazy import made_by
from ..config.naming import setting_to, written_as
from ..runtime.words import shown
from . import records
from .coco import (
    Checked,
    check_one,
    different_classes,
    is_of_detectron2,
    is_own,
    names_of,
    to_map,
    use,
)
from .mend import Notes
from .reading import read_coco, without_gc

logger = logging.getLogger(__name__)
COCO_KEYPOINTS = 17  # those that pycocotools knows sigmas for


class Model(NamedTuple):
    """
    What of a model has to fit the datasets. A key and its value each, as the user writes it.

    Attributes:
        heads: of heads that classify: numbers of classes.
        masks: the key that makes it predict masks; "" if it does not.
        mask_format: "polygon" or "bitmask", how the loader hands masks on.
        keypoints: number of keypoints, 0 for none.
        sigmas: of the keypoints, for the evaluation.
    """

    heads: Tuple[Tuple[str, int], ...] = ()
    masks: str = ""
    mask_format: Tuple[str, str] = ("INPUT.MASK_FORMAT", "polygon")
    keypoints: Tuple[str, int] = ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 0)
    sigmas: Tuple[str, Sequence[float]] = ("TEST.KEYPOINT_OKS_SIGMAS", ())


def check_datasets(cfg: Union[CfgNode, DictConfig], eval_only: bool = False) -> None:
    """
    Check the datasets a config names, and compare them with its model and with each other. The
    main process does it and tells the others. Call it once the log is set up.

    Args:
        cfg: of either form, distilling or not.
        eval_only: whether only the test sets are used.

    Raises:
        FileNotFoundError, ValueError: names what does not fit, and the key to set.
    """
    plain = student_config(cfg)
    train = run_settings.value_of(plain, "train_sets") or []
    test = run_settings.value_of(plain, "test_sets") or []
    model = yaml_model(plain) if isinstance(plain, CfgNode) else lazy_model(plain)
    with written_as(run_settings.form_name(cfg)):
        check_fit(train, test, model, eval_only)
    if isinstance(cfg, DictConfig) and len(test) == 1:
        _hand_to_lazy_evaluator(cfg, test[0])


def _hand_to_lazy_evaluator(cfg: DictConfig, name: str) -> None:
    tasks = MetadataCatalog.get(name).get("evaluated")
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator")
    if tasks and evaluator is not None and evaluator.get("tasks") is None:
        if made_by(evaluator) is COCOEvaluator:
            evaluator.tasks = tasks


def yaml_model(cfg: CfgNode) -> Model:
    """Of a YAML config that does not distil."""
    model, name = cfg.MODEL, cfg.MODEL.META_ARCHITECTURE
    if name == "RetinaNet":
        return Model((("MODEL.RETINANET.NUM_CLASSES", model.RETINANET.NUM_CLASSES),))
    if name not in ("GeneralizedRCNN", "PanopticFPN"):
        return Model()  # class-agnostic, like an RPN, or not known here
    heads = [("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES)]
    if model.ROI_MASK_HEAD.get("POINT_HEAD_ON", False):
        heads.append(("MODEL.POINT_HEAD.NUM_CLASSES", model.POINT_HEAD.NUM_CLASSES))
    points = model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if model.KEYPOINT_ON else 0
    return Model(
        tuple(heads),
        "MODEL.MASK_ON True" if model.MASK_ON else "",
        ("INPUT.MASK_FORMAT", cfg.INPUT.MASK_FORMAT),
        ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", points),
        ("TEST.KEYPOINT_OKS_SIGMAS", tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)),
    )


def lazy_model(cfg: DictConfig) -> Model:
    """Of a LazyConfig that does not distil."""

    def find(key: str, default: Any) -> Any:
        value = OmegaConf.select(cfg, key)
        return default if value is None else value

    keys = ("model.roi_heads.num_classes", "model.num_classes")
    heads = tuple((key, find(key, None)) for key in keys if isinstance(find(key, None), int))
    masks, mapper = "model.roi_heads.mask_head", "dataloader.train.mapper.instance_mask_format"
    points = "model.roi_heads.keypoint_head.num_keypoints"
    sigmas = "dataloader.evaluator.kpt_oks_sigmas"
    return Model(
        heads,
        masks if find(masks, None) is not None else "",
        (mapper, find(mapper, "polygon")),
        (points, find(points, 0)),
        (sigmas, tuple(find(sigmas, ()))),
    )


def check_fit(
    train: Sequence[str], test: Sequence[str], model: Model, eval_only: bool = False
) -> None:
    """As :func:`check_datasets`, of names. Those that nobody has registered are passed over."""
    train, test = ([n for n in names if n in DatasetCatalog] for names in (train, test))
    parsed = {} if comm.is_main_process() else _parse(test if eval_only else train)
    for name, checked in _told_by_main(lambda: _check(train, test, model, eval_only)):
        use(name, checked)
        content = parsed.pop(name, None)
        if content is not None and checked.json_file == checked.source:
            records.keep(name, content, MetadataCatalog.get(name).image_root)
        _evaluate(name, checked, model)


def _parse(names: Sequence[str]) -> Dict[str, Any]:
    """
    Contents of the files that are loaded next, read while the main process checks them. They are
    as they are, and used only if there is nothing to mend.
    """
    own = {name: MetadataCatalog.get(name).source_json_file for name in names if is_own(name)}
    with without_gc():
        return {name: read_coco(json_file, Notes())[0] for name, json_file in own.items()}


def _told_by_main(make: Callable[[], Any]) -> Any:
    """What ``make`` gives or raises in the main process, in every process."""
    given, error = None, None
    if comm.is_main_process():
        try:
            given = make()
        except (OSError, ValueError) as raised:
            error = raised
    given, error = comm.all_gather((given, error))[0]
    if error is not None:
        raise error
    return given


def _check(train, test, model: Model, eval_only: bool) -> List[Tuple[str, Checked]]:
    found = []
    classes = _known_classes(train, model) if eval_only else None
    for name in [] if eval_only else dict.fromkeys(train):
        checked = _one(name, model, classes, True, True, found)
        if checked:
            _check_training(name, checked, model)
        classes = classes or thing_classes(name, checked)
    for name in dict.fromkeys(test):
        if name not in dict(found):
            _one(name, model, classes, not eval_only, eval_only, found)
        if name in dict(found):
            _check_test(name, dict(found)[name], model)
    return found


def _one(
    name: str, model: Model, classes, strict: bool, soon: bool, found: List
) -> Optional[Checked]:
    checked = None
    if is_own(name) or _is_mappable(name, classes):
        metadata = MetadataCatalog.get(name)
        checked = check_one(
            name,
            metadata.get("source_json_file") or metadata.json_file,
            metadata.image_root,
            bool(model.masks),
            bool(model.keypoints[1]),
            classes,
            keep=soon,
        )
        found.append((name, checked))
    own = thing_classes(name, checked)
    _check_heads(name, own, model)
    if own and classes and list(own) != list(classes):
        message = different_classes(name, own, classes)
        if strict:
            raise ValueError(message)
        # another dataset may be wanted, and nothing says for sure what the model was trained on
        logger.warning(f"{message} The evaluation takes them as they are numbered.")
    return checked


def _is_mappable(name: str, classes: Optional[Sequence[str]]) -> bool:
    """Whether Detectron2 has registered a dataset, and with training's classes in another order."""
    if not classes or not is_of_detectron2(name):
        return False
    own = thing_classes(name)
    return bool(own) and to_map(own, classes)


def _known_classes(train: Sequence[str], model: Model) -> Optional[Sequence[str]]:
    """
    Of the training set that a config for evaluation names too, and that may not even be there.
    Only one whose number of classes is the model's can be what the model was trained on.
    """
    for name in train:
        try:
            classes = thing_classes(name)
        except (OSError, ValueError) as error:
            logger.info(f"Classes of dataset '{name}' are not compared: {error}")
            continue
        if classes and all(number == len(classes) for _, number in model.heads):
            return classes
    return None


def _check_heads(name: str, classes: Optional[Sequence[str]], model: Model) -> None:
    for key, number in model.heads:
        if classes is not None and number != len(classes):
            raise ValueError(
                f"Dataset '{name}' has {len(classes)} classes ({shown(classes)}), but the model "
                f"has {setting_to(key, number)}. Set {setting_to(key, len(classes))}, or use "
                "another dataset."
            )


def thing_classes(name: str, checked: Optional[Checked] = None) -> Optional[Sequence[str]]:
    """Names of a registered dataset's classes, without reading its images; None if unknown."""
    if checked:
        return list(checked.classes)
    metadata = MetadataCatalog.get(name).as_dict()
    if "thing_classes" in metadata:
        return metadata["thing_classes"]
    json_file = metadata.get("json_file")
    if metadata.get("evaluator_type") == "coco" and json_file and PathManager.isfile(json_file):
        content, _ = read_coco(json_file, Notes())
        return names_of(content) if content is not None else None
    return None


def _check_training(name: str, checked: Checked, model: Model) -> None:
    _say_what_reaches(name, checked)
    if model.masks and checked.without_mask:
        raise ValueError(
            f"{checked.without_mask} annotations of dataset '{name}' ('{checked.source}') "
            f"have no segmentation, which the model needs ({model.masks}). Train a detector of "
            "boxes, or complete the dataset."
        )
    key, form = model.mask_format
    if model.masks and form == "polygon" and checked.rles:
        raise ValueError(
            f"{checked.rles} of {checked.masks} masks of dataset '{name}' "
            f"('{checked.source}') are RLE, but {key} is {form}. Set "
            f"{setting_to(key, 'bitmask')}."
        )
    if model.keypoints[1]:
        _check_keypoints(name, checked, model)


def _say_what_reaches(name: str, checked: Checked) -> None:
    usable, objects = sum(checked.usable), sum(checked.objects)
    if not usable:
        raise ValueError(
            f"None of the {objects} objects of dataset '{name}' ('{checked.source}') reaches "
            "the model: Detectron2 leaves out crowds, objects marked 'ignore', boxes without "
            "area inside the image, and masks without area. There is nothing to train on."
        )
    pairs = list(zip(checked.classes, checked.usable, checked.objects))
    fewer = [pair for pair in pairs if pair[1] < pair[2]]
    listed = ", ".join(f"{shown([c])} {n} of {m}" for c, n, m in (fewer or pairs)[:20])
    more = ", ..." if len(fewer or pairs) > 20 else ""
    why = "; crowds, 'ignore' and objects without area are left out" if fewer else ""
    logger.info(f"Dataset '{name}': {usable} of {objects} objects reach the model{why} "
                f"({listed}{more}).")  # fmt: skip
    none = [c for c, n, _ in pairs if not n]
    if none:
        logger.warning(
            f"Dataset '{name}' has no object that reaches the model of {len(none)} of "
            f"{len(pairs)} classes: {shown(none)}."
        )


def _check_keypoints(name: str, checked: Checked, model: Model) -> None:
    key, number = model.keypoints
    names = MetadataCatalog.get(name).get("keypoint_names") or checked.keypoint_names
    where = f"dataset '{name}' ('{checked.source}')"
    if not names:
        raise ValueError(
            f"The model has keypoints ({setting_to(key, number)}), but the categories of {where} "
            'do not name any. Add "keypoints": [names] to them, or set keypoint_names and '
            "keypoint_flip_map of the dataset's metadata."
        )
    for count in {len(names), *checked.keypoints}:
        if count != number:
            raise ValueError(
                f"{where} has {count} keypoints, but the model has {setting_to(key, number)}. "
                f"Set {setting_to(key, count)}, or use another dataset."
            )
    if not checked.keypoints:
        raise ValueError(f"No annotation of {where} has keypoints, which the model needs ({key}).")


def _check_test(name: str, checked: Checked, model: Model) -> None:
    where = f"dataset '{name}' ('{checked.source}')"
    if not checked.annotated:
        logger.warning(f"Dataset '{name}' has no annotations: predictions are written only.")
        return
    some, objects = checked.without_mask, checked.masks + checked.without_mask
    if model.masks and 0 < some < objects:
        raise ValueError(
            f"{some} of {objects} objects of {where} have no segmentation, which the "
            f"evaluation needs ({model.masks}). Complete the dataset, take them out, or take all "
            "masks out: then boxes are evaluated only."
        )
    key, number = model.keypoints
    if not number or not checked.keypoints:
        return
    if checked.keypoints != (number,):
        raise ValueError(
            f"{where} has {shown(checked.keypoints)} keypoints, but the model has "
            f"{setting_to(key, number)}."
        )
    key, sigmas = model.sigmas
    if len(sigmas or range(COCO_KEYPOINTS)) != number:
        raise ValueError(
            f"{key} is {list(sigmas)}; it must be {number} numbers, one a keypoint of {where} "
            f"(COCO's own, without the key, are {COCO_KEYPOINTS})."
        )


def _evaluate(name: str, checked: Checked, model: Model) -> None:
    """What of the predictions can be evaluated, for :func:`skd.evaluation.build_evaluator`."""
    lost = []
    if model.masks and checked.annotated and checked.without_mask and not checked.masks:
        lost.append("segm")
    if model.keypoints[1] and checked.annotated and not checked.keypoints:
        lost.append("keypoints")
    tasks = [("bbox", True), ("segm", model.masks), ("keypoints", model.keypoints[1])]
    metadata = MetadataCatalog.get(name)
    metadata.__dict__.pop("evaluated", None)
    metadata.set(evaluated=[t for t, has in tasks if has and t not in lost] if lost else None)
    if lost and comm.is_main_process():
        logger.warning(f"Dataset '{name}' has nothing to evaluate {', '.join(lost)} with.")
