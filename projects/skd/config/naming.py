"""
What a setting is called in the form of config that the user wrote: errors name it so.

    MODEL.TEACHER.PRECISION    in a YAML config
    model.teacher.precision    in a LazyConfig
    the teacher's precision    in Python

Code says :func:`called` where it is set up; whoever reads a config says :func:`written_as`. The
methods in ``distillers`` know no config and are told their names, see ``distillers/settings.py``.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

YAML, LAZY, PYTHON = "yaml", "lazy", "python"
_form: "ContextVar[str]" = ContextVar("form of config", default=PYTHON)


@contextmanager
def written_as(form: str) -> Iterator[None]:
    """Within, the user's words are those of ``YAML``, ``LAZY`` or, as they are outside, Python."""
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def called(key: str) -> str:
    """
    Args:
        key: of a YAML config: MODEL.TEACHER.*, MODEL.STUDENT.*, or one right below MODEL.DISTILLER.

    Returns:
        What the user calls it.
    """
    form = _form.get()
    if form == YAML:
        return key
    _, node, name = key.lower().split(".")
    if form == LAZY:
        return f"model.teacher.{name}" if node == "teacher" else f"model.{name}"
    return f"the teacher's {name}" if node == "teacher" else f"DistillRCNN's {name}"
