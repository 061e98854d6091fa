"""
What URLs give, kept in the cache's folder.

Detectron2 keeps downloads where the path of their URL says. Importing this module gives its
``PathManager`` a cache that knows the host and stays in its folder. docs/security.md says what is
promised and what is not.
"""

import hashlib
import os
import re
import time
import urllib.request
from typing import IO, Any, Optional, Union
from urllib.parse import urlparse

from detectron2.utils.file_io import HTTPURLHandler, OneDrivePathHandler, PathManager
from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

_URL = ("http://", "https://", "ftp://")
CATALOG = "catalog://"  # Detectron2's names for weights of its zoo
# Its zoo's files stay where stock Detectron2 keeps them, and finds them without a network.
_ZOO_HOST = "https://dl.fbaipublicfiles.com/"
_PLAIN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")


def is_url(path: str) -> bool:
    """Whether iopath's handlers here download it."""
    return path.startswith(_URL)


def is_remote(path: str) -> bool:
    """Whether a scheme in front (``s3://``) leads ``PathManager`` off this machine."""
    return "://" in path


def is_file(path: str) -> bool:
    """``PathManager.isfile``; what its handler cannot say that of is for the reader to try."""
    try:
        return PathManager.isfile(path)
    except NotImplementedError:  # of URLs, and of names in Detectron2's catalog
        return True


def open_bounded(path: str, limit: int) -> bytes:
    """
    The content of a file or URL, or its first ``limit + 1`` bytes if there are more; a larger
    download is broken off.
    """
    with PathManager.open(path, "rb", **({"limit": limit} if is_url(path) else {})) as f:
        return f.read(limit + 1)


def cached_path(url: str, cache_dir: Optional[str] = None) -> str:
    """
    The path at which a download is kept: below the cache's folder whatever the URL looks like, in a
    folder of its host and of all the rest of the URL.

    Raises:
        ValueError: the URL has no host.
    """
    cache, parts = get_cache_dir(cache_dir), urlparse(url)
    name = url.removeprefix(_ZOO_HOST)
    if name != url and _PLAIN.fullmatch(name):
        return os.path.join(cache, name)
    if not parts.hostname:
        raise ValueError(f"The URL '{url}' has no host.")
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return os.path.join(
        cache, "hosts", _file_name(parts.hostname), digest, _file_name(parts.path.split("/")[-1])
    )


def _file_name(text: str) -> str:
    """Its end is kept: Detectron2 tells kinds of files by it."""
    return re.sub(r"[^\w.-]", "_", text, flags=re.ASCII).lstrip(".")[-100:] or "file"


class _URLHandler(HTTPURLHandler):
    """iopath's, with the cache of :func:`cached_path`, and with a limit where one is asked for."""

    def _get_local_path(
        self,
        path: str,
        force: bool = False,
        cache_dir: Optional[str] = None,
        limit: Optional[int] = None,
        **kwargs: Any,
    ) -> str:
        self._check_kwargs(kwargs)
        cached = cached_path(path, cache_dir)
        with file_lock(cached):
            if force and os.path.isfile(cached):
                os.remove(cached)
            if not os.path.isfile(cached):
                _download(path, cached, limit)
        return cached

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> Union[IO[str], IO[bytes]]:
        if mode not in ("r", "rb"):
            raise ValueError(f"'{path}' is a URL; it can be read only.")
        return open(self._get_local_path(path, **kwargs), mode)


class _OneDriveHandler(OneDrivePathHandler, _URLHandler):
    """iopath's, on top of the cache here."""


# A server that sends less than this in so many seconds is given up: some send a byte now and then.
LEAST_BYTES, WINDOW_SECONDS = 2**14, 60.0


def _download(url: str, path: str, limit: Optional[int]) -> None:
    """Download as iopath does, but give up a silent server; the file appears as a whole."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with _answer(url) as answer:
            with open(temporary, "wb") as f:
                _copy_answer(url, answer, f, limit)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _answer(url: str) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=WINDOW_SECONDS)
    except OSError as error:  # which does not name it
        raise OSError(f"'{url}' cannot be downloaded: {error}") from error


def _copy_answer(url: str, answer: Any, f: IO[bytes], limit: Optional[int]) -> None:
    announced = int(answer.headers.get("Content-Length") or 0)
    window, got, size = time.monotonic(), 0, 0
    hidden = limit is not None
    with tqdm(unit="B", unit_scale=True, total=announced or None, desc=url, disable=hidden) as bar:
        while True:
            data = answer.read1(2**20)
            f.write(data)
            bar.update(len(data))
            size, got = size + len(data), got + len(data)
            if limit is not None and size > limit:
                raise ValueError(f"'{url}' is too large; it must be at most {limit} bytes.")
            if not data:
                break
            if time.monotonic() - window > WINDOW_SECONDS:
                if got < LEAST_BYTES:
                    raise OSError(f"'{url}' sends {got} bytes in {WINDOW_SECONDS:g} s: given up.")
                window, got = time.monotonic(), 0
    if size < announced or not size:
        raise OSError(f"'{url}' has sent {size} bytes of {announced or 'a file'}.")


PathManager.register_handler(_URLHandler(), allow_override=True)
PathManager.register_handler(_OneDriveHandler(), allow_override=True)
