"""
What a setting is called in the form of config that the user wrote: errors name it so.

    MODEL.TEACHER.PRECISION    in a YAML config
    model.teacher.precision    in a LazyConfig
    the teacher's precision    in Python

Code says :func:`called` of the YAML key, wherever the error is raised; whoever reads a config, or
runs a model that was made from one, says :func:`written_as`. ``runtime`` and ``distillers``, which
know no config, have a ``called`` of their own in their ``words.py``, which :func:`written_as` sets.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Iterator

from ..distillers import words as words_of_distillers
from ..runtime import words as words_of_runtime
from .run_settings import LAZY, YAML, keys_of, settings

PYTHON = "python"
_form: "ContextVar[str]" = ContextVar("form of config", default=PYTHON)

_AUGMENTATIONS = "dataloader.train.mapper.augmentations"
# from a YAML key to what LazyConfig and what Python call it, where no rule of `called` says it
_OTHERS = {
    "INPUT.FORMAT": ("input_format", "input_format"),
    "INPUT.MIN_SIZE_TRAIN": (_AUGMENTATIONS, "the mapper's augmentations"),
    "INPUT.MAX_SIZE_TRAIN": (_AUGMENTATIONS, "the mapper's augmentations"),
}
# whose arguments the keys of a node are in Python, and where a LazyConfig has them
_OWNERS = {
    "MODEL.TEACHER": ("the teacher's", "model.teacher."),
    "MODEL.STUDENT": ("DistillRCNN's", "model."),
    "MODEL.DISTILLER": ("DistillRCNN's", "model."),
    "MODEL.ROI_BOX_HEAD": ("the box predictor's", "roi_heads.box_predictor."),
    "MODEL.TIMM": ("TimmBackbone's", "TimmBackbone's "),
}


def _yaml_key(owner: type, field: str) -> str:
    return f"MODEL.DISTILLER.{owner.config_key()}.{owner.Settings.key(field)}"


def _lazy_path(owner: type, field: str) -> str:
    argument = {"BALANCE": "balance", "HEADS": "heads"}.get(owner.config_key(), "distiller")
    return f"model.{argument}.{field}"


# of what a setting in the room ``distillers`` is called
_NAMERS = {YAML: _yaml_key, LAZY: _lazy_path, PYTHON: words_of_distillers.in_python}


@contextmanager
def written_as(form: str) -> Iterator[None]:
    """
    Name settings in errors as a form of config does, within the block.

    Args:
        form: ``YAML``, ``LAZY`` or, as it is outside of any block, ``PYTHON``.
    """
    token = _form.set(form)
    try:
        with words_of_runtime.named_by({} if form == PYTHON else keys_of(form)):
            with words_of_distillers.named_by(_NAMERS[form]):
                yield
    finally:
        _form.reset(token)


def present_form() -> str:
    """The form that :func:`written_as` has set, for what names settings later."""
    return _form.get()


def called(key: str) -> str:
    """
    Args:
        key: of a YAML config: of a run's setting, of a node of this project, or ``INPUT.*``.

    Returns:
        What the user calls it.
    """
    form = _form.get()
    if form == YAML:
        return key
    lazy = form == LAZY
    for setting in settings():
        if setting.yaml == key:
            return setting.lazy if lazy else setting.name
    if key in _OTHERS:
        return _OTHERS[key][0 if lazy else 1]
    node, _, name = key.rpartition(".")
    owner, place = _OWNERS[node]
    return f"{place}{name.lower()}" if lazy else f"{owner} {name.lower()}"


def setting_to(key: str, value: Any) -> str:
    """
    How the user sets a key to a value: "KEY value" in YAML, else "name=value".

    Args:
        key: as the user calls it.
    """
    return f"{key} {value}" if _form.get() == YAML else f"{key}={value}"
