"""A config that comes through a pipe: ``--config-file <(...)``, ``/dev/stdin``, a FIFO."""

import os
import stat
import tempfile
from contextlib import contextmanager
from typing import Iterator

from ..runtime.user_errors import UserError
from .safe_yaml import MAX_BYTES


@contextmanager
def as_file(path: str) -> Iterator[str]:
    """
    A config is read several times, and by several processes; a pipe gives its content once.

    Args:
        path: of the command line, as long as there is one process.

    Returns:
        The same for a file, a URL or nothing; else a YAML file with what the pipe has given.

    Raises:
        UserError: it gives nothing.
    """
    if not _is_pipe(path):
        yield path
        return
    with open(path, "rb") as f:
        content = f.read(MAX_BYTES + 1)
    if not content.strip():
        raise UserError(f"The config file '{path}' is a pipe that gives nothing.")
    with tempfile.TemporaryDirectory(prefix="skd-config-") as folder:
        copy = os.path.join(folder, "config.yaml")
        with open(copy, "wb") as f:
            f.write(content)
        yield copy


def _is_pipe(path: str) -> bool:
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):  # of this process alone
        return os.path.exists(path)
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)
