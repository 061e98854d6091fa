"""
Ctrl-C while a command imports what it needs, which takes seconds: a word, not a traceback of torch.
Importing this module sets that up, so that it can be what the package imports first.
"""

import sys
from types import TracebackType
from typing import Optional, Type

_before = sys.excepthook


def told_as_before() -> None:
    """To be called after the imports, which Ctrl-C lets end before."""
    sys.excepthook = _before


def told_shortly() -> None:
    sys.excepthook = _tell


def _tell(
    kind: Type[BaseException], error: BaseException, traceback: Optional[TracebackType]
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)  # Python ends with SIGINT, which a shell calls 130
    else:
        _before(kind, error, traceback)


told_shortly()
