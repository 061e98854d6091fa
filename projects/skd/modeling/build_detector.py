"""Any detector from its config: a file, or a name in Detectron2's model zoo; YAML or LazyConfig."""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import OmegaConf
from torch import nn

from ..config import (
    Config,
    form_of,
    is_lazy_file,
    lazy_config,
    projects,
    run_settings,
    student_config,
    yaml_config,
)
from ..config.built import find_built
from ..config.naming import called
from .classes import class_names, classes_of_run
from .load import check_exists, load_in_full
from .model_zoo import find_config, zoo_weights


class DetectorSource(NamedTuple):
    """
    What a detector is built from.

    config_file, weights, opts, random_weights, projects: see ``MODEL.TEACHER``.
    from_yaml: only a YAML config names it, which may not lead to code.
    """

    config_file: str
    weights: str = ""
    opts: Sequence[str] = ()
    random_weights: bool = False
    projects: Sequence[str] = ()
    from_yaml: bool = False

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "DetectorSource":
        """The source of the teacher that a YAML config names."""
        t = cfg.MODEL.TEACHER
        return cls(t.CONFIG_FILE, t.WEIGHTS, list(t.OPTS), t.RANDOM_WEIGHTS, list(t.PROJECTS), True)


class Detector(NamedTuple):
    """
    model: whole, in eval mode; input_format: the color order it was trained with; datasets: the
    names of those it was trained on.
    """

    model: nn.Module
    input_format: str
    datasets: List[str]


def build_detector(source: DetectorSource) -> Detector:
    """
    The whole detector whose backbone a :class:`FrozenTeacher` keeps.

    Raises:
        ValueError: a teacher that Python has built, of which only a part may be left.
    """
    if find_built(source.config_file) is not None:
        raise ValueError(
            f"The teacher is '{source.config_file}', and to look at what it finds "
            f"({called('MODEL.TEACHER.EVALUATE')}) needs one that a config file names."
        )
    cfg, weights = _read(source)
    args = _build(source.config_file, cfg)
    if not source.random_weights:
        load_in_full(args["model"], weights)
    return Detector(
        args["model"].eval(), args["input_format"], run_settings.value_of(cfg, "train_sets") or []
    )


def detector_args(source: DetectorSource, **kwargs: Any) -> Dict[str, Any]:
    """The arguments of a :class:`FrozenTeacher`; ``kwargs`` are those that this does not make."""
    cfg, weights = _read(source)
    return {
        "weights": weights,
        "random_weights": source.random_weights,
        **_build(source.config_file, cfg),
        "config": _of_the_model(cfg),
        "classes": _class_names(cfg, weights) if kwargs.get("heads") else [],
        **kwargs,
    }


def _class_names(cfg: Config, weights: str) -> List[str]:
    """As its own run has written them; else those of its dataset here, which may be another one."""
    datasets = run_settings.value_of(cfg, "train_sets") or []
    return classes_of_run(weights) or class_names(datasets)


def _read(source: DetectorSource) -> Tuple[Config, str]:
    """The config, and where the weights are; whether they are there is known at once."""
    path, weights = find_config(source.config_file), source.weights
    if source.from_yaml:
        projects.check_allowed(source.projects, "MODEL.TEACHER.PROJECTS")
    if not weights and not source.random_weights:
        weights = zoo_weights(source.config_file)
    if weights:
        check_exists(weights)  # before the model is built, which takes long
    return _load_config(source, path), weights


def _build(config_file: str, cfg: Config) -> Dict[str, Any]:
    try:
        model = build_model_of(cfg)
    except ImportError as error:
        raise ImportError(
            f"The teacher '{config_file}' needs what is not installed here: {error}"
        ) from error
    input_format = getattr(model, "input_format", None) or form_of(cfg).image_format(cfg)
    return {"model": model, "input_format": input_format}


def build_model_of(cfg: Config) -> nn.Module:
    """The model of a config of either form, on the CPU."""
    if isinstance(cfg, CfgNode):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return instantiate(cfg.model)


def _of_the_model(cfg: Config) -> Dict[str, Any]:
    """The part of a config that a detector is made from."""
    if isinstance(cfg, CfgNode):
        return {"MODEL": cfg.MODEL, "INPUT": {"FORMAT": cfg.INPUT.FORMAT}}
    return {"model": OmegaConf.to_container(cfg.model)}


def _load_config(source: DetectorSource, path: str) -> Config:
    """The detector's own: a student of this project may be a teacher in turn."""
    opts = list(source.opts)
    if is_lazy_file(path):
        for project in source.projects:
            projects.load_project(project)
        _check_opts(opts, opts, "'key=value'")
        if not source.from_yaml:
            return student_config(lazy_config.override(lazy_config.read(path), opts))
        lazy_config.check_allowed(source.config_file, path, "MODEL.TEACHER.CONFIG_FILE")
        return student_config(
            lazy_config.override_values(lazy_config.read(path), opts, "MODEL.TEACHER.OPTS")
        )
    _check_opts(opts, opts[::2], "KEY, VALUE")
    try:
        cfg = yaml_config.read(path, source.projects)
        yaml_config.merge_options(cfg, opts)
    except (AssertionError, KeyError, ValueError) as error:  # what yacs raises
        given = f" with {called('MODEL.TEACHER.OPTS')} {opts}" if opts else ""
        raise ValueError(
            f"The teacher's config '{path}'{given} cannot be read: {error.args[0]}"
        ) from error
    return student_config(cfg)


def _check_opts(opts: List[Any], keys: List[Any], form: str) -> None:
    wrong = [key for key in keys if not isinstance(key, str)]
    if wrong:
        raise ValueError(
            f"{called('MODEL.TEACHER.OPTS')} is {opts}, with {wrong[0]!r} in the place of a key; "
            f"for this teacher's config it must be [{form}, ...]."
        )
