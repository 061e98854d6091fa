"""One run at a time in a folder."""

import os
import socket
import time
from typing import Dict, Optional

from .user_errors import UserError
from .words import called

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

NAME = "run.lock"

# A POSIX lock: the kernel frees it when the process ends, however it ends; loader workers do not
# inherit it; and NFS knows it. It belongs to the process, so two trainers of one process (in a
# notebook) share it. Closing any descriptor of the file would free it: it is opened once.
_held: Dict[str, int] = {}


class FolderInUseError(UserError):
    """Another run is using the output folder."""


def acquire(folder: str, key: str = "") -> Optional[str]:
    """
    Keep other processes' runs out of a folder until :func:`release`, or the end of this process.

    Args:
        folder: that exists.
        key: what names it, for the error; by default what names a run's folder.

    Returns:
        None, or why the folder cannot be locked (some network file systems).

    Raises:
        FolderInUseError: another process has it; says which.
    """
    path = os.path.realpath(os.path.join(folder, NAME))
    if fcntl is None:
        return "this system has no POSIX locks"
    if _is_held(path):
        return None
    release(folder)  # of a folder that was removed and made again
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        return str(error)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        other = os.pread(descriptor, 500, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if not isinstance(error, (BlockingIOError, PermissionError)):
            return str(error)
        raise FolderInUseError(
            f"{key or called('output_dir')} is '{folder}', and another run is using it "
            f"({other or 'unknown'}); it must be a folder of its own. Or wait for that run to end."
        ) from None
    _held[path] = descriptor
    os.ftruncate(descriptor, 0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, {started}".encode(), 0)
    return None


def user_of(folder: str) -> Optional[str]:
    """Who keeps others out of a folder, in words; None for nobody, or this process."""
    path = os.path.realpath(os.path.join(folder, NAME))
    if fcntl is None or path in _held:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "unknown"
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _is_held(path: str) -> bool:
    try:
        return path in _held and os.path.samestat(os.fstat(_held[path]), os.stat(path))
    except OSError:
        return False


def release(folder: str) -> None:
    """Let others in. Nothing happens where the folder is not locked."""
    descriptor = _held.pop(os.path.realpath(os.path.join(folder, NAME)), None)
    if descriptor is not None:
        os.close(descriptor)
