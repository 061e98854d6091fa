"""Errors of what the user gave, told without a traceback, as every command does."""

import os
import sys
import time
import traceback
from contextlib import contextmanager
from typing import Iterator

import yaml
from detectron2.utils import comm

TRACEBACK_VARIABLE = "SKD_TRACEBACK"  # set to see where an error comes from
EXIT_USER_ERROR = 2


class UserError(RuntimeError):
    """An error that says all there is to know, wherever it comes from."""


# what is raised for a bad value, file or name before the work starts; after that, it is unexpected
EARLY_ERRORS = (
    UserError,
    ValueError,
    KeyError,
    OSError,
    AssertionError,  # of yacs
    NotImplementedError,
    ImportError,
    yaml.YAMLError,
)


def message_of(error: BaseException) -> str:
    """What an error says, for a line; where that is next to nothing, its kind and place too."""
    # str() of a KeyError is the repr of its key
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in text:  # torch's words about an error in a loader's worker
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    text = text.strip()
    # of a bare assertion, or of a key that is not there: no sentence
    return (
        text if " " in text else f"{type(error).__name__}{': ' * bool(text)}{text}{_place(error)}"
    )


def _place(error: BaseException) -> str:
    """The line of code that raised an error which says next to nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    return f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})"


def wants_traceback() -> bool:
    """Whether the user has asked for tracebacks of errors that are told in a line."""
    return bool(os.environ.get(TRACEBACK_VARIABLE))


@contextmanager
def exits_on(*kinds: type) -> Iterator[None]:
    """Ends the process with ``EXIT_USER_ERROR`` and the message after an error of these kinds."""
    try:
        yield
    except kinds as error:
        if wants_traceback():
            raise
        _let_main_process_speak()
        print(
            f"error: {message_of(error)}\n({TRACEBACK_VARIABLE}=1 shows where it comes from.)",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(EXIT_USER_ERROR)


def _let_main_process_speak() -> None:
    """All processes meet most errors, and are stopped when the first of them ends."""
    if not comm.is_main_process():
        time.sleep(10.0)
