"""
What the user calls a setting. Errors in this room name settings by Python's names; who knows the
user's config says what they are called there (``config/naming.py``).
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator, Mapping

_words: "ContextVar[Mapping[str, str]]" = ContextVar("the user's words", default={})


@contextmanager
def said_as(words: Mapping[str, str]) -> Iterator[None]:
    """
    Args:
        words: from a name (``output_dir``, ``weights``, ...) to what errors within call it.
    """
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def word(name: str) -> str:
    """What the user calls a setting; by default its name."""
    return _words.get().get(name, name)
