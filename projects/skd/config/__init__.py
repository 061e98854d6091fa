"""
Every configuration key, and the same verbs for YAML and LazyConfig. What is defined here takes
either form of config.

    keys.py          MODEL.STUDENT, MODEL.TEACHER, MODEL.TIMM: what a YAML config gets
    methods.py       MODEL.DISTILLER, and the methods that it describes
    run_settings.py  a run's settings, each declared once for both forms

    yaml_config.py   the verbs of a YAML config
    lazy_config.py   the same verbs of a LazyConfig
    safe_yaml.py     YAML as data: reads every .yaml
    pipe.py          a config that comes through a pipe
    projects.py      other Detectron2 projects: --project
    built.py         teachers that are built, which a config can only name
    naming.py        what the user calls a setting, for errors
"""

import os
from types import ModuleType
from typing import Any, Sequence

from detectron2.config import CfgNode
from omegaconf import DictConfig
from torch import nn

from . import lazy_config, projects, yaml_config
from .built import keep
from .keys import META_ARCHITECTURE, add_skd_config
from .projects import use_project
from .run_settings import Config
from .safe_yaml import outline
from .yaml_config import is_distilling_class, merge_file

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
    """
    The module with the verbs for this form of config, :mod:`yaml_config` or :mod:`lazy_config`.
    Both have, with the same arguments:

    - ``read``, ``override``: a file, and options of the command line on it;
    - ``check``, ``check_training``, ``check_teacher``: errors before a run;
    - ``trust``, ``record_projects``, ``freeze``, ``thaw``: what only a YAML config needs;
    - ``distil_always``, ``load_in_process``: for a run that is looked at for a few iterations;
    - ``is_distilling``, ``distill``, ``student_config``, ``save_trained_student``: see below;
    - ``output_dir``, ``image_format``, ``test_mapper``, ``schedule_by_length``: what it says.
    """
    return yaml_config if isinstance(cfg, CfgNode) else lazy_config


def read_config(path: str) -> Config:
    """
    A LazyConfig, or a YAML file on Detectron2's defaults and the keys of this project and of those
    in use.
    """
    return (lazy_config if is_lazy_file(path) else yaml_config).read(path)


def is_distilling(cfg: Config) -> bool:
    """Whether a config describes a student with a teacher."""
    return form_of(cfg).is_distilling(cfg)


def distill(cfg: Config, teacher: Any, weights: str = "", projects: Sequence[str] = ()) -> None:
    """
    Turn a config that does not distil into one that does, in place: what ``--teacher`` does.

    Args:
        cfg: a YAML config, or a LazyConfig. A YAML file with keys of this project needs
            :func:`add_skd_config` before it is read.
        teacher: see ``MODEL.TEACHER.CONFIG_FILE``; or a detector that is built, which is changed
            when it becomes the teacher; or a :class:`FrozenTeacher`. A built one is kept as long as
            the process runs, and the config works in this process only.
        weights: see ``MODEL.TEACHER.WEIGHTS``. Empty for a built detector that has its weights.
        projects: see ``MODEL.TEACHER.PROJECTS``.

    Raises:
        TypeError: ``cfg`` is not a config, or ``teacher`` not a teacher.
        ValueError: a config that is frozen, or whose keys of these names are another project's.
    """
    if not isinstance(cfg, (CfgNode, DictConfig)):
        raise TypeError(
            f"skd.distill() takes a config, a CfgNode or a LazyConfig, not a {type(cfg).__name__}. "
            "A model that is built distils as skd.DistillRCNN(student=model, teacher=..., "
            "distiller=skd.StructuredDistiller())."
        )
    check_kind_of_teacher(teacher)
    name = keep(teacher) if isinstance(teacher, nn.Module) else os.fspath(teacher)
    projects = [projects] if isinstance(projects, str) else projects
    form_of(cfg).distill(cfg, name, os.fspath(weights or ""), projects)


def check_kind_of_teacher(teacher: Any) -> None:
    """
    Raises:
        TypeError: neither a file or a name, nor built.
    """
    if not isinstance(teacher, (str, os.PathLike, nn.Module)):
        raise TypeError(
            f"The teacher is a {type(teacher).__name__}; it must be a config file, a name in "
            "Detectron2's model zoo, a detector that is built, or a skd.FrozenTeacher."
        )


def student_config(cfg: Config) -> Config:
    """
    The student's own config: a copy for stock Detectron2, without any key of this project unless
    the student itself needs it (``MODEL.TIMM``, where its backbone is timm's).
    """
    return form_of(cfg).student_config(cfg)
