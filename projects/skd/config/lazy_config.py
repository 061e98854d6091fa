"""A LazyConfig: read it, make it distil, take the student out of it. The verbs are YAML's."""

import copy
import logging
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..runtime.trust import TRUST_VARIABLE, is_trusted
from ..runtime.user_errors import UserError
from . import run_settings
from .keys import DISTILS
from .safe_yaml import UnsafeConfigError, read_yaml

logger = logging.getLogger(__name__)

# Detectron2's mapper; detrex's; what models and other projects call it
FORMAT_KEYS = (
    "dataloader.train.mapper.image_format",
    "dataloader.train.mapper.img_format",
    "dataloader.train.mapper.input_format",
    "model.input_format",
    "dataloader.train.mapper.cfg.INPUT.FORMAT",
)

_allowed: Set[str] = set()  # files the user has named


def allow(path: str) -> None:
    """Take a file for the user's word: a YAML config may lead to it though it runs code."""
    _allowed.add(os.path.realpath(path))


def check_allowed(name: str, path: str, key: str) -> None:
    """
    Args:
        name: a LazyConfig that a YAML config names.
        path: the file it was found to be.
        key: where it is named.

    Raises:
        UnsafeConfigError: the user has not named it, and it is not in Detectron2's model zoo.
    """
    zoo = os.path.join(os.path.dirname(os.path.realpath(model_zoo.__file__)), "configs", "")
    named = {os.path.realpath(name), os.path.realpath(path)} & _allowed
    if named or os.path.realpath(path).startswith(zoo) or is_trusted(path):
        return
    raise UnsafeConfigError(
        f"{key} is '{name}', a LazyConfig, which runs code, and only a YAML config names it. If "
        "you trust who made it, name it on the command line, give train_net.py's --trust-lazy, or "
        f"name it in the environment variable {TRUST_VARIABLE}."
    )


def read(path: str) -> DictConfig:
    """
    A LazyConfig, from its .py file or from the .yaml that a run has saved. Reading the former runs
    it; instantiating either runs what it names.

    Raises:
        ValueError: the file fails when it is run.
    """
    if path.endswith(".py"):
        try:
            return LazyConfig.load(path)
        except (OSError, UserError):
            raise
        except Exception as error:
            cause = error.__cause__ or error
            raise ValueError(
                f"Config file '{path}' fails when it is run: {type(cause).__name__}: {cause}"
            ) from error
    return OmegaConf.create(read_yaml(path), flags={"allow_objects": True})


def override(cfg: DictConfig, options: Sequence[str]) -> DictConfig:
    """
    The config with ``key=value ...`` of the command line, in place.

    Raises:
        ValueError: something else among them.
    """
    try:
        return LazyConfig.apply_overrides(cfg, list(options))
    except HydraException as error:
        raise ValueError(
            f"The options {list(options)} cannot be read ({str(error).splitlines()[0]}); for a "
            "LazyConfig each must be key=value."
        ) from error


def trust(cfg: DictConfig) -> None:
    """Nothing to do: a LazyConfig has run its code when it is read."""


def record_projects(cfg: DictConfig, names: Sequence[str]) -> None:
    """Nothing to do: a LazyConfig imports what it needs."""


def freeze(cfg: DictConfig) -> None:
    """Nothing to do: Detectron2 does not freeze LazyConfigs."""


def thaw(cfg: DictConfig) -> None:
    """Nothing to do, likewise."""


def distil_always(cfg: DictConfig, balance: Mapping[str, Any]) -> None:
    """
    Let a config that distils do so in every iteration, in place.

    Args:
        balance: settings of the balance, by their names in Python; left out where it has none.
    """
    cfg.model.every = 1
    if isinstance(cfg.model.get("balance"), DictConfig):
        cfg.model.balance.update(balance)


# what PyTorch's loader takes with workers only
_OF_WORKERS = ("prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout")


def load_in_process(cfg: DictConfig) -> None:
    """Let images of a training be loaded without workers, in place; by Detectron2's loader."""
    loader = run_settings.select(cfg, "dataloader.train")
    if loader and "num_workers" in loader:  # else a loader of the user's own
        loader.num_workers = 0
        for name in _OF_WORKERS:
            loader.pop(name, None)


# What a run reads: a section made by LazyCall, or one of plain values. The others may be absent.
_CALLS, _PLAIN = ("model", "optimizer", "dataloader.train"), ("train",)
_OPTIONAL_CALLS = ("dataloader.test",)
_OPTIONAL = (
    "train.ddp", "train.amp", "train.checkpointer", "dataloader", "dataloader.train.dataset",
    "optimizer.params",
)  # fmt: skip
_VALUES = {
    "train.cudnn_benchmark": (bool, "True or False"),
    "train.checkpointer.max_to_keep": (int, "a whole number"),
    "dataloader.evaluator": ((DictConfig, ListConfig), "made by LazyCall, or a list of such"),
}


def check(cfg: DictConfig) -> None:
    """
    Raises:
        ValueError: a section that any run needs is missing, or a section or value is of another
            kind than it must be; names its path.
    """
    _check_there(cfg, (*_PLAIN, "model"))
    for path in (*_PLAIN, *_OPTIONAL, *_CALLS, *_OPTIONAL_CALLS):
        _check_section(path, run_settings.select(cfg, path), path in (*_CALLS, *_OPTIONAL_CALLS))
    for path, (kind, expected) in _VALUES.items():
        value = run_settings.select(cfg, path)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{path} is {value!r:.80}; it must be {expected}.")
    if run_settings.select(cfg, "dataloader.evaluator"):  # both are asked for after training only
        _check_there(cfg, ("dataloader.test",))
    run_settings.check_kinds(cfg)


def check_training(cfg: DictConfig) -> None:
    """
    What a training needs on top of :func:`check`.

    Raises:
        ValueError: a section is missing, or a teacher.
    """
    _check_there(cfg, (*_CALLS, "lr_multiplier"))
    check_teacher(cfg)


def _check_there(cfg: DictConfig, needed: Sequence[str]) -> None:
    missing = [path for path in needed if run_settings.select(cfg, path) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing; the config of a run must have it.")


def _check_section(path: str, value: Any, call: bool) -> None:
    if value is None:
        return
    if not isinstance(value, DictConfig):
        raise ValueError(f"{path} is {value!r:.80}; it must be a section of the config.")
    if call and "_target_" not in value:
        raise ValueError(f"{path} has no _target_; it must be made by LazyCall.")


def output_dir(cfg: DictConfig) -> str:
    """The folder of the run."""
    return cfg.train.output_dir


def override_values(cfg: DictConfig, options: Sequence[str], key: str) -> DictConfig:
    """
    :func:`override` with options from a file, which may change values only.

    Raises:
        UnsafeConfigError: they would change what is called.
    """
    before = _targets(OmegaConf.to_container(cfg, resolve=False))
    cfg = override(cfg, options)
    after = _targets(OmegaConf.to_container(cfg, resolve=False))
    if any("${" in option for option in options) or not after.items() <= before.items():
        raise UnsafeConfigError(
            f"{key} is {list(options)}; in a YAML config it must change values only, no _target_, "
            "and have no ${...}, because these call things. Make a LazyConfig of your own for that."
        )
    return cfg


def _targets(value: Any, place: str = "") -> Dict[str, Any]:
    """Every ``_target_`` in a config, by its place."""
    if isinstance(value, dict):
        found = {place: value["_target_"]} if "_target_" in value else {}
        items = value.items()
    else:
        found, items = {}, enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, inner in items:
        found.update(_targets(inner, f"{place}/{name}"))
    return found


def made_by(node: DictConfig) -> Any:
    """The class or function that a section calls; None for a section of plain values."""
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def is_distilling(cfg: DictConfig) -> bool:
    """
    Whether a LazyConfig describes a student with a teacher: by the class of its model.

    Raises:
        ValueError: it has no model.
    """
    if not isinstance(run_settings.select(cfg, "model"), DictConfig):
        raise ValueError("model is missing, or no section; the config of a run must have it.")
    try:
        kind = made_by(cfg.model)
    except Exception:  # whatever a module raises; who makes the model says so
        return False
    return getattr(kind, DISTILS, False)


def check_teacher(cfg: DictConfig) -> None:
    """
    Raises:
        ValueError: the config distils and names no teacher.
    """
    if is_distilling(cfg) and not cfg.model.get("teacher"):
        raise ValueError(
            "model distils (it has a student and a distiller), and model.teacher is missing: give "
            "it, or --teacher, or put the student in place of model to train it without one."
        )


def image_format(cfg: DictConfig) -> Optional[str]:
    """The color order of the training images, wherever projects keep it; None if it is unknown."""
    for key in FORMAT_KEYS:
        found = OmegaConf.select(cfg, key)
        if found:
            return found
    return None


def test_mapper(cfg: DictConfig) -> Callable[[Dict[str, Any]], Dict[str, Any]]:
    """What makes a record of a dataset the input of a model, in tests."""
    return instantiate(cfg.dataloader.test.mapper)


def distill(
    cfg: DictConfig, teacher: str, weights: str = "", extra_projects: Sequence[str] = ()
) -> None:
    """
    Turn a LazyConfig that does not distil into one that does, in place: what ``--teacher`` does.
    One that distils gets another teacher, and is otherwise left as it is.

    Args:
        cfg: with ``model``, the student.
        teacher, weights: see ``MODEL.TEACHER.CONFIG_FILE`` and ``MODEL.TEACHER.WEIGHTS``.
        extra_projects: see ``MODEL.TEACHER.PROJECTS``.
    """
    named = {"config_file": teacher, "weights": weights}
    named.update({"projects": list(extra_projects)} if extra_projects else {})
    if is_distilling(cfg):
        _name_teacher(cfg.model, named)
        return
    max_iter = "${train.max_iter}" if "train" in cfg else 0
    # names, because a config knows no model; those of the package outlive a move of the file
    cfg.model = L("skd.DistillRCNN")(
        student=cfg.model,
        teacher=L("skd.build_teacher")(**named),
        distiller=L("skd.StructuredDistiller")(),
        balance=L("skd.GradientBalance")(max_iter=max_iter, enabled=None),
        input_format=image_format(cfg),
    )


def _name_teacher(model: DictConfig, named: Dict[str, Any]) -> None:
    """Give a model that distils another teacher; how it is run and what it teaches stay."""
    if "config_file" in (model.get("teacher") or {}):
        model.teacher.update(named)
    else:  # none, or one that no file names
        model.teacher = L("skd.build_teacher")(**named)
    if not model.get("distiller"):
        model.distiller = L("skd.StructuredDistiller")()


def schedule_by_length(cfg: DictConfig) -> List[str]:
    """What a change of ``train.max_iter`` changes in the learning rate: the path."""
    return ["lr_multiplier"]  # Detectron2's go by the part of the training that is done


def student_config(cfg: DictConfig, keep_settings: bool = False) -> DictConfig:
    """
    A copy for stock Detectron2: its model is the student, without any key of this project.

    Args:
        cfg: distilling or not.
        keep_settings: this project's settings of a run that are not as by default, for training.
    """
    cfg = copy.deepcopy(cfg)
    if is_distilling(cfg):
        cfg.model = cfg.model.student
    run_settings.remove_added(cfg, keep=keep_settings)
    return cfg


def save_trained_student(cfg: DictConfig, weights: str, path: str) -> None:
    """
    Write the config with which stock Detectron2 uses the student that a run has trained. Not one
    that cannot be loaded, as it has functions of the config file itself: that is a warning.
    """
    cfg = student_config(cfg)
    cfg.train.init_checkpoint = weights
    LazyConfig.save(cfg, path)
    pickled = f"{path}.pkl"  # what Detectron2 writes beside a file that cannot be loaded
    if os.path.exists(pickled):
        os.remove(pickled)
        os.remove(path)
        logger.warning(
            f"No {os.path.basename(path)} is kept, as no file can hold functions of a config file. "
            f"Use the student by your own .py file and train.init_checkpoint={weights}, or put the "
            "functions into a package of yours."
        )
