"""
What the user calls a setting. Errors in this room ask here; who knows the user's config says what a
setting is called there (``config/naming.py``).
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable, Iterator

Namer = Callable[[type, str], str]  # (what has the setting, the field's name) -> the user's word


def in_python(owner: type, field: str) -> str:
    return f"{owner.__name__}'s {field}"


_namer: "ContextVar[Namer]" = ContextVar("the user's words", default=in_python)


@contextmanager
def named_by(namer: Namer) -> Iterator[None]:
    """Name settings in errors by ``namer``, within the block."""
    token = _namer.set(namer)
    try:
        yield
    finally:
        _namer.reset(token)


def called(owner: type, field: str) -> str:
    """
    What the user calls a setting; by default as in "StructuredDistiller's adapter".

    Args:
        owner: the class that has it: it has ``Settings`` and a ``config_key()``.
        field: its name in ``Settings``.
    """
    return _namer.get()(owner, field)
