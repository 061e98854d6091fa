"""A YAML config: read it, make it distil, take the student out of it."""

import logging
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from detectron2.config import CfgNode as CN
from detectron2.config import downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version
from detectron2.data import DatasetMapper
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from . import lazy_config, projects, run_settings
from .keys import (
    DISTILS,
    META_ARCHITECTURE,
    add_skd_config,
    check_nodes,
    fetch_no_timm_weights,
    has_timm,
    own_nodes,
)
from .safe_yaml import read_yaml_with_base

logger = logging.getLogger(__name__)

TEACHER_KEY = "MODEL.TEACHER.CONFIG_FILE"
TEACHER_PROJECTS_KEY = "MODEL.TEACHER.PROJECTS"
PREPROCESS_KEY = "MODEL.TEACHER.PREPROCESS"
NAME_CODE = (TEACHER_KEY, TEACHER_PROJECTS_KEY, PREPROCESS_KEY)


def merge_file(cfg: CN, path: str) -> None:
    """
    Merge a YAML file into a config, in place. If it has keys of a project that comes with
    Detectron2 (PointRend, DeepLab, Panoptic-DeepLab), or names projects in
    ``MODEL.STUDENT.PROJECTS``, they are declared first, as these projects' own scripts do.

    Raises:
        ImportError: such a file, and a Detectron2 without that project.
        KeyError: a key that nobody has declared; says which project may be missing.
        UnsafeConfigError: it, or one it is based on, would run code.
        ValueError: it, or one it is based on, is no YAML, or too large.
    """
    loaded = _node(read_yaml_with_base(path), path)
    projects.declare_installed(cfg, loaded, path)
    _declare_recorded(cfg, loaded)
    try:
        _merge_node(cfg, loaded, path)
    except KeyError as error:
        words = f"Config file '{path}': {error.args[0]}. {projects.hint(loaded)}"
        raise KeyError(words) from error


def _declare_recorded(cfg: CN, loaded: CN) -> None:
    student = (loaded.get("MODEL") or {}).get("STUDENT")
    names = student.get("PROJECTS") if isinstance(student, dict) else None
    projects.check_allowed(names or (), "MODEL.STUDENT.PROJECTS")
    projects.declare_extra(cfg, names or ())


def _node(content: Dict[str, Any], path: str) -> CN:
    try:
        _check_keys(content)
        _check_sections(content)
        return CN(content)
    except (AssertionError, AttributeError, TypeError) as error:  # keys and values yacs cannot take
        raise ValueError(f"Config file '{path}' has what no config may have: {error}") from None


def _check_sections(content: Dict[str, Any]) -> None:
    """What is read before yacs compares a config with its defaults."""
    model = content.get("MODEL", {})
    if not isinstance(model, dict):
        raise TypeError(f"MODEL is {model!r:.80}; it must hold keys")
    for name in ("STUDENT", "TEACHER"):
        section = model.get(name)
        named = section.get("PROJECTS") if isinstance(section, dict) else None
        if not isinstance(named, (list, tuple, type(None))):
            raise TypeError(f"MODEL.{name}.PROJECTS is {named!r:.80}; it must be a list")


def _check_keys(content: Dict[Any, Any]) -> None:
    for key, value in content.items():
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r:.80}, which is no text")
        if isinstance(value, dict):
            _check_keys(value)


def _merge_node(cfg: CN, loaded: CN, path: str) -> None:
    """``CfgNode.merge_from_file`` from where it has read the file: old versions are upgraded."""
    version = loaded.get("VERSION")
    version = guess_version(loaded, path) if version is None else version
    if version not in range(1, cfg.VERSION + 1):
        raise ValueError(f"VERSION in '{path}' is {version!r}; it must be 1 to {cfg.VERSION}.")
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return
    logger.warning(f"Config file '{path}' is of version {version}; it is upgraded.")
    old = downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(loaded)
    new = upgrade_config(old)
    cfg.clear()
    cfg.update(new)


def read(path: str, extra_projects: Sequence[str] = ()) -> CN:
    """
    A YAML file on Detectron2's defaults, the keys of projects in use and of :func:`add_skd_config`.

    Args:
        extra_projects: projects for this config alone; see :func:`use_project`.
    """
    cfg = get_cfg()
    projects.declare(cfg, extra_projects)
    add_skd_config(cfg)
    merge_file(cfg, path)
    return cfg


def override(cfg: CN, options: Sequence[str]) -> CN:
    """
    The config with ``KEY VALUE ...`` of the command line, in place.

    Raises:
        ValueError: a flag in the place of a key.
    """
    late = [key for key in options[::2] if isinstance(key, str) and key.startswith("--")]
    if late:
        raise ValueError(
            f"'{late[0]}' stands behind KEY VALUE, where no flag is read: put it first."
        )
    merge_options(cfg, options)
    trust(cfg, options[::2])
    return cfg


def merge_options(cfg: CN, options: Sequence[str]) -> CN:
    """:func:`override` with options from a file, which are not the user's word."""
    options = list(options)
    options[1::2] = [_as_declared(cfg, *pair) for pair in zip(options[::2], options[1::2])]
    cfg.merge_from_list(options)
    return cfg


def _as_declared(cfg: CN, key: Any, value: Any) -> Any:
    """yacs refuses a whole number, 1 or -1, where the config has 1.0."""
    digits = value.removeprefix("-") if isinstance(value, str) else ""
    is_whole = type(value) is int or digits.isdecimal()
    known = run_settings.select(cfg, key) if isinstance(key, str) else None
    return float(value) if is_whole and isinstance(known, float) else value


def trust(cfg: CN, keys: Sequence[str] = NAME_CODE) -> None:
    """
    Take what a config names under these keys for the user's word: it may lead to a LazyConfig, a
    project or a function, which run code.
    """
    teacher = cfg.MODEL.TEACHER
    if TEACHER_KEY in keys:
        lazy_config.allow(teacher.CONFIG_FILE)
    if TEACHER_PROJECTS_KEY in keys:
        projects.allow(teacher.PROJECTS)
    if PREPROCESS_KEY in keys:
        projects.allow([teacher.PREPROCESS])


def record_projects(cfg: CN, names: Sequence[str]) -> None:
    """Note in the config which projects it was read with, for those who read what a run writes."""
    cfg.MODEL.STUDENT.PROJECTS = list(dict.fromkeys([*cfg.MODEL.STUDENT.PROJECTS, *names]))


def freeze(cfg: CN) -> None:
    """Let nothing be changed from here on."""
    cfg.freeze()


def thaw(cfg: CN) -> None:
    """Let it be changed again."""
    cfg.defrost()


def distil_always(cfg: CN, balance: Mapping[str, Any]) -> None:
    """
    Let a config that distils do so in every iteration, in place.

    Args:
        balance: settings of the balance, by their names in Python; left out where it has none.
    """
    cfg.MODEL.DISTILLER.EVERY = 1  # with more, those that distil pull so many times as hard
    cfg.MODEL.DISTILLER.BALANCE.update({name.upper(): value for name, value in balance.items()})


def load_in_process(cfg: CN) -> None:
    """Let images of a training be loaded without workers, in place."""
    cfg.DATALOADER.NUM_WORKERS = 0


def check(cfg: CN) -> None:
    """
    Raises:
        ValueError: a value that is read first is of another kind than it must be; names its key.
    """
    run_settings.check_kinds(cfg)


def check_training(cfg: CN) -> None:
    """What a training needs on top of :func:`check`: see :func:`check_teacher`."""
    check_teacher(cfg)


def output_dir(cfg: CN) -> str:
    """The folder of the run."""
    return cfg.OUTPUT_DIR


def is_distilling(cfg: CN) -> bool:
    """Whether a YAML config describes a student with a teacher."""
    return is_distilling_class(cfg.MODEL.META_ARCHITECTURE)


def is_distilling_class(name: str) -> bool:
    """Whether a meta-architecture is ``DistillRCNN`` or a registered subclass of it."""
    known = name in META_ARCH_REGISTRY and getattr(META_ARCH_REGISTRY.get(name), DISTILS, False)
    return known or name == META_ARCHITECTURE


def distill(cfg: CN, teacher: str, weights: str = "", extra_projects: Sequence[str] = ()) -> None:
    """
    Turn a config that does not distil into one that does, in place: what ``--teacher`` does.

    Args:
        cfg: any Detectron2 config; the keys of :func:`add_skd_config` are added if it has none.
        teacher: see ``MODEL.TEACHER.CONFIG_FILE``.
        weights: see ``MODEL.TEACHER.WEIGHTS``.
        extra_projects: see ``MODEL.TEACHER.PROJECTS``.
    """
    if cfg.is_frozen():
        raise ValueError("The config is frozen: call skd.distill() before cfg.freeze().")
    add_skd_config(cfg)
    if not is_distilling(cfg):
        cfg.MODEL.STUDENT.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
        cfg.MODEL.META_ARCHITECTURE = META_ARCHITECTURE
    cfg.MODEL.TEACHER.CONFIG_FILE = teacher
    lazy_config.allow(teacher)
    cfg.MODEL.TEACHER.WEIGHTS = weights
    if extra_projects:
        projects.allow(extra_projects)
        cfg.MODEL.TEACHER.PROJECTS = list(extra_projects)


def check_teacher(cfg: CN) -> None:
    """
    Raises:
        ValueError: the config distils and names no teacher, or the reverse. Other keys that have
            no effect in a config that does not distil are one warning.
    """
    if is_distilling(cfg):
        check_nodes(cfg)
    elif "TEACHER" not in own_nodes(cfg):
        return
    teacher = cfg.MODEL.TEACHER
    if is_distilling(cfg) and not teacher.CONFIG_FILE:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, and "
            "MODEL.TEACHER.CONFIG_FILE is empty: name a teacher there or with --teacher, or set "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.STUDENT.META_ARCHITECTURE} to train the student "
            "without one."
        )
    for key in ("CONFIG_FILE", "WEIGHTS"):
        if not is_distilling(cfg) and teacher[key]:
            raise ValueError(
                f"MODEL.TEACHER.{key} is '{teacher[key]}', and the config does not distil: "
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}. Name the teacher with "
                f"--teacher and --teacher-weights, or leave MODEL.TEACHER.{key} empty."
            )
    if not is_distilling(cfg) and comm.is_main_process():
        _warn_of_no_effect(cfg)


def _warn_of_no_effect(cfg: CN) -> None:
    default = get_cfg()
    add_skd_config(default)
    changed = [
        f"MODEL.{node}{key} {value!r:.80}"
        for node in own_nodes(cfg)
        for key, value in _changed(cfg.MODEL[node], default.MODEL[node])
        if f"{node}{key}" != "STUDENT.PROJECTS"
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        logger.warning(
            f"No effect, because the config does not distil: {', '.join(changed[:5])}{more}. "
            "--teacher makes it distil."
        )


def _changed(node: CN, default: CN, place: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in node.items():
        inner, before = f"{place}.{key}", default.get(key)
        if isinstance(value, dict):
            yield from _changed(value, before if isinstance(before, dict) else CN(), inner)
        elif key not in default or value != before:
            yield inner, value


def image_format(cfg: CN) -> str:
    """The color order of the training images."""
    return cfg.INPUT.FORMAT


def test_mapper(cfg: CN) -> DatasetMapper:
    """What makes a record of a dataset the input of a model, in tests."""
    return DatasetMapper(cfg, False)


def schedule_by_length(cfg: CN) -> List[str]:
    """What a change of ``SOLVER.MAX_ITER`` changes in the learning rate: the key and its value."""
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    # whose SOLVER.STEPS are iterations
    return [] if name == "WarmupMultiStepLR" else [f"SOLVER.LR_SCHEDULER_NAME {name}"]


def student_config(cfg: CN, keep_settings: bool = False) -> CN:
    """
    The student's own config: a copy for stock Detectron2, without any key of this project unless
    the student itself needs it (``MODEL.TIMM``, where its backbone is timm's).

    Args:
        cfg: distilling or not.
        keep_settings: this project's settings of a run that are not as by default, for training.
    """
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    if is_distilling(cfg):
        cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.STUDENT.META_ARCHITECTURE
    for node in own_nodes(cfg):
        cfg.MODEL.pop(node)
    run_settings.remove_added(cfg, keep=keep_settings)
    if has_timm(cfg) and "timm" not in cfg.MODEL.BACKBONE.NAME:
        cfg.MODEL.pop("TIMM")
    if frozen:
        cfg.freeze()
    return cfg


def save_trained_student(cfg: CN, weights: str, path: str) -> None:
    """Write the config with which stock Detectron2 uses the student that a run has trained."""
    cfg = student_config(cfg)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    fetch_no_timm_weights(cfg)
    with PathManager.open(path, "w") as f:
        f.write(cfg.dump())
