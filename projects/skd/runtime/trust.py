"""Which files may run code when they are loaded, and the errors of those that may not."""

import os
from typing import Any

from .user_errors import UserError

# Files, separated as in PATH, whose maker you trust with running any code on this machine.
TRUST_VARIABLE = "SKD_TRUST_CHECKPOINTS"


class CheckpointError(UserError):
    """A file that is no checkpoint, or is not to be trusted."""


class DamagedCheckpointError(CheckpointError):
    """A file that is cut off, or not a checkpoint at all."""


def is_trusted(path: str) -> bool:
    """Whether ``SKD_TRUST_CHECKPOINTS`` names a file."""
    names = os.environ.get(TRUST_VARIABLE, "").split(os.pathsep)
    return os.path.realpath(path) in {os.path.realpath(name) for name in names if name}


def refusal(path: str, what: str) -> CheckpointError:
    """The error that a file would run code; ``what``, by name."""
    return CheckpointError(
        f"'{path}' is refused: loading it would run {what}. A checkpoint needs arrays, numbers, "
        "strings and containers only. If you trust who made it with your machine, set "
        f"{TRUST_VARIABLE}={path}."
    )


def damaged(path: str, why: Any) -> DamagedCheckpointError:
    """The error that a file is no checkpoint; ``why``: an error, or words."""
    why = str(why).rstrip(". ") or type(why).__name__  # an EOFError says nothing
    return DamagedCheckpointError(f"'{path}' is damaged or no checkpoint: {why}.")
