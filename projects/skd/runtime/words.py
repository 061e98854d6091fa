"""
What the user calls a setting. Errors in this room name settings by Python's names; who knows the
user's config says what they are called there (``config/naming.py``). And how many names are told.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Iterator, Mapping, Sequence

_words: "ContextVar[Mapping[str, str]]" = ContextVar("the user's words", default={})


@contextmanager
def named_by(words: Mapping[str, str]) -> Iterator[None]:
    """
    Args:
        words: from a name (``output_dir``, ``weights``, ...) to what errors within call it.
    """
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def called(name: str) -> str:
    """What the user calls a setting; by default its name."""
    return _words.get().get(name, name)


def shown(names: Sequence[Any]) -> str:
    """The first names, for a message; what no terminal shows as a letter is escaped."""
    text = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
