"""Files that appear whole or not at all."""

import errno
import os
import re
import zipfile
from typing import BinaryIO, Callable

_LEFTOVER = re.compile(r".+\.\d+\.tmp")  # as write_whole() names what it has not finished
# what file systems answer that know no fsync, or none of folders (FUSE, SMB, some of NFS)
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}


def write_whole(path: str, write: Callable[[BinaryIO], None]) -> None:
    """
    Let a file appear under its name when all of it is on the disk.

    Args:
        path: of the file, which may exist.
        write: writes the content into an open file.

    Raises:
        OSError: it could not be written, or the name is a folder's or a device's; what was under
            the name is still there.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # renaming would take its place
        raise OSError(f"'{path}' is no file, and cannot be replaced by one.")
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            _fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    _fsync_folder(os.path.dirname(path) or ".")


def check_sums(path: str) -> None:
    """
    Compare each part of a zip file, as ``torch.save`` writes, with its checksum: ``torch.load``
    does not. It takes about 0.3 s for each GB. Other files have none, and pass.

    Raises:
        zipfile.BadZipFile: other bytes than were written; names the part.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        # 0: written under torch.serialization.set_crc32_options(False)
        for part in (info for info in archive.infolist() if info.CRC):
            with archive.open(part) as f:
                while f.read(1 << 20):
                    pass


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _fsync_folder(path: str) -> None:
    """Make the new name last. The file is complete by now: that a folder cannot is no error."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(folder)
    except OSError:
        pass
    finally:
        os.close(folder)


def remove_leftovers(folder: str) -> None:
    """Remove what killed runs left half written. Only for the one run that uses the folder."""
    try:
        for name in os.listdir(folder):
            if _LEFTOVER.fullmatch(name):
                os.remove(os.path.join(folder, name))
    except OSError:
        pass  # it costs space, no more
