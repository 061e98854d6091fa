"""
Other Detectron2 projects: imported, so that Detectron2's registries know their parts, and their
keys declared.

To import a package runs its code. So a project is used when the user names it, on the command line
or in Python; a YAML file may ask only for one that has been named, or that comes with Detectron2.
"""

import argparse
import importlib
import re
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Set

from detectron2.config import CfgNode as CN

# Projects of Detectron2's repository. The first three are installed with it; the others are
# folders there, whose own folder has to be on PYTHONPATH.
DETECTRON2S = {
    "PointRend": "detectron2.projects.point_rend:add_pointrend_config",
    "DeepLab": "detectron2.projects.deeplab:add_deeplab_config",
    "Panoptic-DeepLab": "detectron2.projects.panoptic_deeplab:add_panoptic_deeplab_config",
    "TridentNet": "tridentnet:add_tridentnet_config",
    "TensorMask": "tensormask:add_tensormask_config",
    "DensePose": "densepose:add_densepose_config",
    "PointSup": "point_sup:add_point_sup_config",
}
# A key that only configs of this project have.
PROJECT_OF_KEY = {
    "MODEL.POINT_HEAD": "PointRend",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": "DeepLab",
    "MODEL.PANOPTIC_DEEPLAB": "Panoptic-DeepLab",
    "MODEL.TRIDENT": "TridentNet",
    "MODEL.TENSOR_MASK": "TensorMask",
    "MODEL.ROI_DENSEPOSE_HEAD": "DensePose",
    "INPUT.POINT_SUP": "PointSup",
}

_ADDING = re.compile(r"(add_\w*config)?")  # "": the one that is called so

_used: Dict[str, Callable[[CN], Any]] = {}  # by name: what declares its keys
_named: Set[str] = set()  # by the user, for one config alone


class UnknownProjectError(ImportError):
    """A project that is not installed, or that does not declare its keys as it should."""


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--project``, for every command that reads a config."""
    parser.add_argument(
        "--project", action="append", default=[], metavar="MODULE[:FUNCTION]",
        help="another Detectron2 project: the package to import and its function that adds keys to "
        f"a config, or one of {', '.join(DETECTRON2S)} (several times)",
    )  # fmt: skip


def use_project(name: str) -> None:
    """
    Import a project, and declare its keys in every YAML config that is read from then on, the
    student's and the teacher's: what ``--project`` does.

    Args:
        name: a package, with ``:`` and the function in it that adds its keys to a config (without:
            the one called ``add_..._config``, if any), or a name in ``DETECTRON2S``.

    Raises:
        UnknownProjectError: there is no such package or function, or it has several.
    """
    _used[name] = load_project(name)


def allow(names: Sequence[str]) -> None:
    """Take projects for the user's word, for ``MODEL.TEACHER.PROJECTS``."""
    _named.update(names)


def check_allowed(names: Sequence[str], key: str) -> None:
    """
    Args:
        names: as for :func:`use_project`. Of a package that the user has named, a file may name
            the functions called ``add_..._config``.

    Raises:
        ValueError: a project that only a YAML file names.
    """
    for name in names:
        given = name in DETECTRON2S or name in _used or name in _named
        if not given and not (_is_named(name) and _ADDING.fullmatch(name.partition(":")[2])):
            raise ValueError(
                f"{key} names '{name}'. To import it runs its code, and only a YAML config names "
                f"it: if you trust it, give --project {name}, or skd.use_project({name!r})."
            )


def check_function_allowed(name: str, key: str) -> None:
    """
    Args:
        name: MODULE:FUNCTION.

    Raises:
        ValueError: only a YAML file names it.
    """
    module = name.partition(":")[0]
    if name and not _is_named(name):
        raise ValueError(
            f"{key} names '{name}'. To import it runs its code, and only a YAML config names it: "
            f"if you trust it, give --project {module}, or skd.use_project({module!r})."
        )


def _is_named(name: str) -> bool:
    """Whether the user has named a module, or a package around it, whichever function of it."""
    named = {n.partition(":")[0] for n in (*_used, *_named)}
    return any(f"{name.partition(':')[0]}.".startswith(f"{n}.") for n in named)


def load_function(name: str, key: str) -> Callable:
    """
    Import a function.

    Args:
        name: MODULE:FUNCTION, or MODULE:CLASS.METHOD.
        key: where it is named, for errors.

    Raises:
        UnknownProjectError: no such module or function.
        ValueError: a name of another form.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ValueError(f"{key} is '{name}'; it must be MODULE:FUNCTION.")
    try:
        found = attrgetter(function)(importlib.import_module(module_name))
    except ImportError as error:
        raise UnknownProjectError(_absent(name, module_name, error)) from error
    except AttributeError as error:
        raise UnknownProjectError(f"{key} is '{name}': {error}.") from error
    if not callable(found):
        raise UnknownProjectError(f"{key} is '{name}', which is no function: {found!r:.80}.")
    return found


def declare(cfg: CN, names: Sequence[str] = ()) -> None:
    """
    Add the keys of all projects in use to a config, in place, and those of further ones.

    Raises:
        UnknownProjectError: see :func:`use_project`.
    """
    for add_config in _used.values():
        add_config(cfg)
    declare_extra(cfg, names)


def declare_extra(cfg: CN, names: Sequence[str]) -> None:
    """Add the keys of those projects that are not in use anyway."""
    for name in names:
        if name not in _used:
            load_project(name)(cfg)


def load_project(name: str) -> Callable[[CN], Any]:
    """Import a project; the function that declares its keys. See :func:`use_project`."""
    module_name, _, function = DETECTRON2S.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownProjectError(_absent(name, module_name, error)) from error
    functions = [function] if function else _adding(module)
    if len(functions) > 1:
        raise UnknownProjectError(
            f"The project '{name}' has {', '.join(functions)}: name the one that adds its keys, as "
            f"in {name}:{functions[0]}."
        )
    if not functions:
        return lambda cfg: None  # registries only
    if not callable(getattr(module, functions[0], None)):
        raise UnknownProjectError(
            f"The project '{name}' has no function '{function}'. It has "
            f"{', '.join(_adding(module)) or 'none called add_..._config'}."
        )
    return partial(_add_keys, name, getattr(module, functions[0]))


def _add_keys(name: str, add_config: Callable[[CN], Any], cfg: CN) -> None:
    try:
        add_config(cfg)
    except Exception as error:  # of code that is not ours
        raise ValueError(
            f"The project '{name}' fails when it adds its keys to the config: {error!r}"
        ) from error


def _adding(module: ModuleType) -> List[str]:
    return [n for n in vars(module) if n and _ADDING.fullmatch(n)]


def _absent(name: str, module: str, error: ImportError) -> str:
    if f"{module}.".startswith(f"{error.name}."):
        where = "its folder has to be on PYTHONPATH"
        if name in DETECTRON2S:
            where = f"the folder projects/{name} of Detectron2's repository has to be on PYTHONPATH"
    else:
        where = "what it needs is not installed here"
    return f"The project '{name}' (package {module}) cannot be imported; {where}: {error}"


def projects_of(content: Dict[str, Any]) -> List[str]:
    """Names of Detectron2's projects whose keys a YAML file has."""
    return [name for key, name in PROJECT_OF_KEY.items() if _has(content, key)]


def _has(content: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def declare_installed(cfg: CN, content: Dict[str, Any], path: str) -> None:
    """
    Add the keys of those projects that come with Detectron2, where a file has them and the config
    does not, in place.

    Raises:
        UnknownProjectError: this Detectron2 is without them.
    """
    for key, name in PROJECT_OF_KEY.items():
        module = DETECTRON2S[name]
        if not module.startswith("detectron2.") or not _has(content, key) or _has(cfg, key):
            continue
        try:
            add_config = load_project(name)
        except UnknownProjectError as error:
            raise UnknownProjectError(f"'{path}' has {key}. {error}") from error
        add_config(cfg)


def hint(content: Dict[str, Any]) -> str:
    """Advice for a YAML file with unknown keys: which project may be missing."""
    names = projects_of(content)
    if names:
        return f"It has keys of {', '.join(names)}: give --project {' --project '.join(names)}."
    return (
        "If it is a key of another project, name that project with --project MODULE:FUNCTION (its "
        "package, and the function in it that adds keys to a config), in Python with "
        "skd.use_project()."
    )
