"""
Every configuration key, and the same verbs for YAML and LazyConfig: read, override, distil, student
of. What is here takes either form; :mod:`yaml` and :mod:`lazy` hold the two.
"""

from types import ModuleType
from typing import Sequence, Union

from detectron2.config import CfgNode
from omegaconf import DictConfig

from . import lazy, projects, yaml
from .keys import META_ARCHITECTURE, add_skd_config
from .projects import use_project
from .safe_yaml import outline
from .yaml import is_distilling_class, merge_file

Config = Union[CfgNode, DictConfig]

__all__ = [
    "Config",
    "META_ARCHITECTURE",
    "add_skd_config",
    "distill",
    "form_of",
    "is_distilling",
    "is_distilling_class",
    "is_lazy_file",
    "merge_file",
    "projects",
    "read_config",
    "student_config",
    "use_project",
]


def is_lazy_file(path: str) -> bool:
    """
    Whether a config file is a LazyConfig: a .py, or the .yaml that a LazyConfig run saves, whose
    ``model`` has a ``_target_``, and which has no ``MODEL``.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or is no YAML.
    """
    if path.endswith(".py"):
        return True
    content = outline(path)
    return "_target_" in content.get("model", ()) and "MODEL" not in content


def form_of(cfg: Config) -> ModuleType:
    """The module with the verbs for this form of config."""
    return yaml if isinstance(cfg, CfgNode) else lazy


def read_config(path: str) -> Config:
    """
    A LazyConfig, or a YAML file on Detectron2's defaults and the keys of this project and of those
    in use.
    """
    return (lazy if is_lazy_file(path) else yaml).read(path)


def is_distilling(cfg: Config) -> bool:
    """Whether a config describes a student with a teacher."""
    return form_of(cfg).is_distilling(cfg)


def distill(cfg: Config, teacher: str, weights: str = "", projects: Sequence[str] = ()) -> None:
    """
    Turn a plain config into one that distils, in place: what ``--teacher`` does.

    Args:
        cfg: a YAML config with the keys of :func:`add_skd_config`, or a LazyConfig.
        teacher: see ``MODEL.TEACHER.CONFIG_FILE``.
        weights: see ``MODEL.TEACHER.WEIGHTS``.
        projects: see ``MODEL.TEACHER.PROJECTS``.
    """
    form_of(cfg).distil(cfg, teacher, weights, projects)


def student_config(cfg: Config) -> Config:
    """
    The student's own config: a copy for stock Detectron2, without any key of this project unless
    the student itself needs it (``MODEL.TIMM``, where its backbone is timm's).
    """
    return form_of(cfg).student_of(cfg)
