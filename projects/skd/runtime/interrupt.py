"""
Ctrl-C while a command imports what it needs, which takes seconds: one word, no traceback of torch.
Importing this module sets that up, so that it can be what the package imports first.
"""

import sys
from types import TracebackType
from typing import Optional, Type

_before = sys.excepthook


def hide_traceback() -> None:
    """Let Ctrl-C print "Interrupted." from here on; other errors have their traceback."""
    sys.excepthook = _hook


def show_traceback() -> None:
    """Let Ctrl-C print its traceback from here on, as before this module was imported."""
    sys.excepthook = _before


def _hook(
    kind: Type[BaseException], error: BaseException, traceback: Optional[TracebackType]
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)  # Python ends with SIGINT, which a shell calls 130
    else:
        _before(kind, error, traceback)


hide_traceback()
