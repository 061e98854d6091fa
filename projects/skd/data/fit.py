"""Whether datasets and model fit each other: told before training, by one process to all."""

import logging
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ..config import Config, run_settings, student_config
from ..config.lazy_config import made_by
from ..config.naming import setting_to, written_as
from ..runtime.words import shown
from . import records
from .coco import (
    check_by_name,
    different_classes,
    is_of_detectron2,
    is_registered_by_user,
    source_of,
    to_map,
    use,
)
from .dataset_facts import DatasetFacts, category_keypoints, names_of, what_reaches
from .keypoints import (
    check_mirrored,
    check_test_keypoints,
    check_training_keypoints,
    compare_keypoints,
    keypoint_names,
)
from .mend import Notes
from .model_facts import ModelFacts, lazy_model, yaml_model
from .reading import open_coco, read_coco, without_gc

logger = logging.getLogger(__name__)


def check_datasets(cfg: Config, eval_only: bool = False) -> None:
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
    if isinstance(cfg, DictConfig):
        _check_lazy_evaluator(cfg, test)
    with written_as(run_settings.form_name(cfg)):
        check_fit(train, test, model, eval_only)
    if isinstance(cfg, DictConfig) and len(test) == 1:
        _hand_to_lazy_evaluator(cfg, test[0])


def _check_lazy_evaluator(cfg: DictConfig, test: Sequence[str]) -> None:
    """A LazyConfig names its test set twice: for the loader, and for what scores."""
    name = OmegaConf.select(cfg, "dataloader.evaluator.dataset_name")
    if not test or not isinstance(name, str) or name in test:
        return
    known = [n for n in (name, *test) if "json_file" in MetadataCatalog.get(n).as_dict()]
    files = [source_of(n) for n in known]
    if name in known and files[0] in files[1:]:
        return  # another name of the same
    raise ValueError(
        f"dataloader.evaluator.dataset_name is '{name}', but dataloader.test.dataset.names is "
        f"{shown(test)}: predictions would be scored against another dataset. Set "
        "dataloader.evaluator.dataset_name to the same."
    )


def _hand_to_lazy_evaluator(cfg: DictConfig, name: str) -> None:
    tasks = MetadataCatalog.get(name).get("evaluated")
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator")
    if tasks and evaluator is not None and evaluator.get("tasks") is None:
        if made_by(evaluator) is COCOEvaluator:
            evaluator.tasks = tasks


def check_fit(
    train: Sequence[str], test: Sequence[str], model: ModelFacts, eval_only: bool = False
) -> None:
    """Check datasets by name as :func:`check_datasets`; those nobody has registered are skipped."""
    train, test = ([n for n in names if n in DatasetCatalog] for names in (train, test))
    parsed = {} if comm.is_main_process() else _parse(test if eval_only else train)
    for name, checked in _from_main_process(lambda: _check(train, test, model, eval_only)):
        use(name, checked)
        content = parsed.pop(name, None)
        if content is not None and checked.json_file == checked.source:
            records.keep(name, content, MetadataCatalog.get(name).image_root)
        _set_evaluated_tasks(name, checked, model)
    for name in [] if eval_only else dict.fromkeys(train):
        check_mirrored(name, model)


def _parse(names: Sequence[str]) -> Dict[str, Any]:
    """
    Contents of the files that are loaded next, read while the main process checks them. They are
    as they are, and used only if there is nothing to mend.
    """
    own = {name: source_of(name) for name in names if is_registered_by_user(name)}
    with without_gc():
        return {name: read_coco(json_file, Notes())[0] for name, json_file in own.items()}


def _from_main_process(make: Callable[[], Any]) -> Any:
    """Call ``make`` in the main process; return or raise in every process what it did there."""
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


def _check(
    train: Sequence[str], test: Sequence[str], model: ModelFacts, eval_only: bool
) -> List[Tuple[str, DatasetFacts]]:
    """:func:`check_fit` in the main process: what was found, by the names of the checked sets."""
    found: List[Tuple[str, DatasetFacts]] = []
    classes = _known_classes(train, model) if eval_only else None
    for name in [] if eval_only else dict.fromkeys(train):
        checked = _check_against_model(name, model, classes, True, True, found)
        if checked:
            _check_training(name, checked, model)
        classes = classes or thing_classes(name, checked)
    for name in dict.fromkeys(test):
        if name not in dict(found):
            _check_against_model(name, model, classes, not eval_only, eval_only, found)
        if name in dict(found):
            _check_test(name, dict(found)[name], model)
    if model.keypoints[1]:
        points = {name: _keypoint_names(name, dict(found)) for name in [*train, *test]}
        compare_keypoints(points, strict=not eval_only)
    if not eval_only:
        _warn_of_shared_files(train, test)
        _warn_of_shared_images(train, test, dict(found))
    return [(name, checked._replace(files=frozenset())) for name, checked in found]


def _warn_of_shared_files(train: Sequence[str], test: Sequence[str]) -> None:
    sources = {n: source_of(n) for n in (*train, *test) if is_registered_by_user(n)}
    trained = {sources[n] for n in train if n in sources}
    for name in dict.fromkeys(n for n in test if sources.get(n) in trained):
        logger.warning(
            f"The test set '{name}' is also trained on, from the file {sources[name]}: its AP "
            "tells how well these images are remembered, not how well others are understood."
        )


def _warn_of_shared_images(
    train: Sequence[str], test: Sequence[str], found: Dict[str, DatasetFacts]
) -> None:
    """Of other files than those of :func:`_warn_of_shared_files`, as after a careless split."""
    sources = {found[n].source for n in train if n in found}
    trained = {file for n in train if n in found for file in found[n].files}
    for name in dict.fromkeys(n for n in test if n in found and found[n].source not in sources):
        shared = sorted(found[name].files & trained)
        if shared:
            logger.warning(
                f"{len(shared)} of the {len(found[name].files)} images of the test set '{name}' "
                f"are also trained on, as '{shared[0]}': its AP tells in part how well these are "
                "remembered."
            )


def _keypoint_names(name: str, found: Dict[str, DatasetFacts]) -> Sequence[str]:
    names = keypoint_names(name, found.get(name))
    if names or name in found or not is_registered_by_user(name):
        return names
    try:  # a training set that an evaluation does not use, and that may not be there
        return category_keypoints(open_coco(source_of(name)))
    except (OSError, ValueError):
        return ()


def _check_against_model(
    name: str,
    model: ModelFacts,
    classes: Optional[Sequence[str]],
    strict: bool,
    soon: bool,
    found: List[Tuple[str, DatasetFacts]],
) -> Optional[DatasetFacts]:
    """
    Check a dataset, and its classes against training's and the model's.

    Args:
        classes: training's, in their order; None if they are not known yet.
        strict: whether other classes than training's are an error; else they are a warning.
        soon: whether it is loaded next.
        found: gets the dataset's facts.

    Returns:
        These facts; None for a dataset that is not checked, see :func:`is_registered_by_user`.
    """
    checked = None
    if is_registered_by_user(name) or _is_mappable(name, classes):
        checked = check_by_name(
            name,
            with_masks=bool(model.masks),
            with_keypoints=bool(model.keypoints[1]),
            classes=classes,
            keep=soon,
        )
        found.append((name, checked))
    own = thing_classes(name, checked)
    message = ""
    if own and classes and list(own) != list(classes):
        message = different_classes(name, own, classes)
        if strict:
            raise ValueError(message)
    _check_heads(name, own, model, classes)
    if message:
        # another dataset may be wanted, and nothing says for sure what the model was trained on
        logger.warning(f"{message} The evaluation takes them as they are numbered.")
    return checked


def _is_mappable(name: str, classes: Optional[Sequence[str]]) -> bool:
    """Whether Detectron2 has registered a dataset, and with training's classes in another order."""
    if not classes or not is_of_detectron2(name):
        return False
    own = thing_classes(name)
    return bool(own) and to_map(own, classes)


def _known_classes(train: Sequence[str], model: ModelFacts) -> Optional[Sequence[str]]:
    """
    The classes of the first training set that has as many as the model: only that can be what it
    was trained on. A config for evaluation names training sets too, which may not even be there.
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


def _check_heads(
    name: str,
    classes: Optional[Sequence[str]],
    model: ModelFacts,
    learned: Optional[Sequence[str]] = None,
) -> None:
    for key, number in model.heads:
        if classes is not None and number != len(classes):
            advice = f"Set {setting_to(key, len(classes))}, or use another dataset."
            if learned and number == len(learned):  # the model is right
                advice = f"Use a dataset of the classes of training: {shown(learned)}."
            raise ValueError(
                f"Dataset '{name}' has {len(classes)} classes ({shown(classes)}), but the model "
                f"has {setting_to(key, number)}. {advice}"
            )


def thing_classes(name: str, checked: Optional[DatasetFacts] = None) -> Optional[Sequence[str]]:
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


def _check_training(name: str, checked: DatasetFacts, model: ModelFacts) -> None:
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
        check_training_keypoints(name, checked, model)


def _say_what_reaches(name: str, checked: DatasetFacts) -> None:
    usable, objects = sum(checked.usable), sum(checked.objects)
    if not usable:
        raise ValueError(
            f"None of the {objects} objects of dataset '{name}' ('{checked.source}') reaches "
            "the model: Detectron2 leaves out crowds, objects marked 'ignore', boxes without "
            "area inside the image, and masks without area. There is nothing to train on."
        )
    logger.info(f"Dataset '{name}': {what_reaches(checked)}.")
    none = [c for c, n in zip(checked.classes, checked.usable) if not n]
    if none:
        logger.warning(
            f"Dataset '{name}' has no object that reaches the model of {len(none)} of "
            f"{len(checked.classes)} classes: {shown(none)}."
        )


def _check_test(name: str, checked: DatasetFacts, model: ModelFacts) -> None:
    where = f"dataset '{name}' ('{checked.source}')"
    if not checked.annotated:
        logger.warning(f"Dataset '{name}' has no annotations: predictions are written only.")
        return
    if not sum(checked.usable):
        logger.warning(
            f"None of the {sum(checked.objects)} objects of {where} can be counted: there are "
            "none, or crowds, objects marked 'ignore' and boxes without area only. Every AP of it "
            "will be nan."
        )
    some, objects = checked.without_mask, checked.masks + checked.without_mask
    if model.masks and 0 < some < objects:
        raise ValueError(
            f"{some} of {objects} objects of {where} have no segmentation, which the "
            f"evaluation needs ({model.masks}). Complete the dataset, take them out, or take all "
            "masks out: then boxes are evaluated only."
        )
    check_test_keypoints(name, checked, model)


def _set_evaluated_tasks(name: str, checked: DatasetFacts, model: ModelFacts) -> None:
    """Note in the metadata which tasks can be evaluated, for ``skd.evaluation.build_evaluator``."""
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
