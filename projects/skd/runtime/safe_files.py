"""
Files from elsewhere, read without running what is in them: weights, proposals, and what URLs give.

Detectron2 reads ``.pkl`` files with ``pickle.load``, which runs whatever a file asks for, and keeps
downloads where the path of their URL says. Importing this module gives Detectron2's ``PathManager``
a cache that knows the host and stays in its folder, and its reader of proposals the pickles of
:func:`load_pickle`. docs/security.md says what is promised and what is not.
"""

import hashlib
import io
import os
import pickle
import pickletools
import re
import time
import urllib.request
from collections import OrderedDict
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.data import build as detectron2_data
from detectron2.utils.file_io import HTTPURLHandler, OneDrivePathHandler, PathManager
from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

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


def _refusal(path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"'{path}' is refused: loading it would run {what}. A checkpoint needs arrays, numbers, "
        "strings and containers only. If you trust who made it with your machine, set "
        f"{TRUST_VARIABLE}={path}."
    )


def _damaged(path: str, why: Any) -> DamagedCheckpointError:
    why = str(why).rstrip(". ") or type(why).__name__  # an EOFError says nothing
    return DamagedCheckpointError(f"'{path}' is damaged or no checkpoint: {why}.")


# ------------------------------------------------------------------------------ torch's own files
def load_tensors(path: str) -> Dict[str, Any]:
    """
    ``torch.load`` of tensors and plain containers, to the CPU.

    Raises:
        CheckpointError: it holds something else; :class:`DamagedCheckpointError`: it is no
            checkpoint.
    """
    try:
        _check_hashes(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise _refusal(path, wanted.group(1)) from None
        reason = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
        raise _damaged(path, reason.group(1)[:200] if reason else error) from None
    except Exception as error:  # whatever a broken file may lead to, torch's reader raises it
        raise _damaged(path, error) from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__}, not a dict")
    return data


def _check_hashes(path: str) -> None:
    """
    torch's reader hashes what a file gives as a key. A tuple of the same tuple twice, forty deep,
    takes hours, and one a million deep crashes the interpreter: its pickle is walked first.

    Raises:
        ValueError: such a file, an empty one, or one whose pickle cannot be walked.
    """
    if os.path.isfile(path) and not os.path.getsize(path):
        raise ValueError("the file is empty")
    for data in _pickles(path):
        _HashCost(data).walk()


def _pickles(path: str) -> Iterator[IO[bytes]]:
    """What torch's reader unpickles, each at its start."""
    with open(path, "rb") as f:
        if f.read(4) == b"PK\x03\x04":
            # by the reader that torch.load uses: another one could be shown another record
            yield io.BytesIO(torch._C.PyTorchFileReader(path).get_record("data.pkl"))
            return
        f.seek(0)
        for _ in range(_PICKLES_OF_OLD_FILES):
            yield f


# magic number, protocol, system, content, names of the storages
_PICKLES_OF_OLD_FILES = 5


class _HashCost:
    """
    Walks a pickle without making anything of it. In the place of each value it keeps how many
    values are in it, with everything shared counted each time, and how deep they are nested.
    """

    _ALL = slice(None)
    # which of an operation's operands are hashed, or go to a function that may hash them
    _HASHED = {
        **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "INST", "OBJ"), _ALL),
        **{"SETITEM": slice(1, None, 2), "SETITEMS": slice(1, None, 2), "DICT": slice(0, None, 2)},
        **{"ADDITEMS": slice(1, None), "FROZENSET": _ALL},
    }
    _FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}

    def __init__(self, f: IO[bytes]):
        self.f, self.left = f, MAX_VALUES
        self.stack: List[Any] = []
        self.memo: Dict[int, Any] = {}

    def walk(self) -> None:
        for op, argument, _ in pickletools.genops(self.f):
            self._step(op, argument)

    def _step(self, op: pickletools.OpcodeInfo, argument: Any) -> None:
        if "PUT" in op.name or op.name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif op.name.endswith("GET"):
            self.stack.append(self.memo[int(argument)])
        elif op.name == "DUP":
            self.stack.append(self.stack[-1])
        elif op.name == "MARK":
            self.stack.append(None)
        else:
            self._replace(op, self._take(op))

    def _take(self, op: pickletools.OpcodeInfo) -> List[List[int]]:
        """Pop the operands of an operation."""
        before, taken = op.stack_before, []
        if pickletools.markobject in before:
            mark = len(self.stack) - 1 - self.stack[::-1].index(None)
            taken, self.stack[mark:] = self.stack[mark + 1 :], []
            before = before[: before.index(pickletools.markobject)]
        first = len(self.stack) - len(before)
        taken, self.stack[first:] = self.stack[first:] + taken, []
        return taken

    def _replace(self, op: pickletools.OpcodeInfo, taken: List[List[int]]) -> None:
        for value in taken[self._HASHED.get(op.name, slice(0))]:
            self._spend(*value)
        cost = min(1 + sum(n for n, _ in taken), MAX_VALUES + 1)
        depth = 1 + max((d for _, d in taken), default=0)
        if op.name in self._FILLING:
            taken[0][:] = [cost, depth]  # also where it is kept in the memo
            self.stack.append(taken[0])
        else:
            self.stack += [[cost, depth] for _ in op.stack_after]

    def _spend(self, count: int, depth: int) -> None:
        self.left -= count
        if self.left < 0 or depth > MAX_NESTING:
            raise ValueError("keys or arguments of too many values, or nested too deep")


def check_kinds(state: Mapping[str, Any], model: Mapping[str, torch.Tensor]) -> None:
    """
    Args:
        state: tensors of a checkpoint, by name.
        model: the state of the model they are for; other names are left alone.

    Raises:
        CheckpointError: integers, bools or complex numbers where the model has real ones, or
            something else than a plain tensor.
    """
    for name, value in state.items():
        here = model.get(name.removeprefix("module."))
        if here is None or not isinstance(value, torch.Tensor):
            continue
        if kind_of(value):
            raise CheckpointError(
                f"{name:.200} is a {kind_of(value)} tensor in the checkpoint; it must be a plain "
                "one, of numbers."
            )
        if here.is_floating_point() and not value.is_floating_point():
            raise CheckpointError(
                f"{name:.200} is {value.dtype} in the checkpoint; it must be of floating point, "
                f"as the model's {here.dtype}."
            )


def kind_of(value: torch.Tensor) -> str:
    """What a tensor is that does not hold a number for each of its places; "" for a plain one."""
    kinds = {
        "meta": value.is_meta,
        "nested": value.is_nested,
        "quantized": value.is_quantized,
        "sparse": value.layout != torch.strided,
    }
    return next((kind for kind, so in kinds.items() if so), "")


# ------------------------------------------------------------------------------------- pickles
MAX_NESTING = 50
MAX_VALUES = 20_000_000  # in a file, with everything shared counted each time
_KEYS = (str, bytes, int, float, bool, type(None))
_ITEM_TYPES = {
    f"{kind}{size}"
    for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248", "c": "8"}.items()
    for size in sizes
} | {"c16"}


def load_pickle(path: str) -> Dict[str, Any]:
    """
    A pickle of NumPy arrays and plain containers, as Detectron2's model zoo has them.

    Arrays are put together here from fields that have been checked; NumPy's own unpickling, which
    trusts them, never runs. They come in the machine's byte order.

    Raises:
        CheckpointError: it holds something else; :class:`DamagedCheckpointError`: it is no pickle.
    """
    with open(path, "rb") as f:
        return load_pickle_file(f, path)


def load_pickle_file(f: IO[bytes], path: str) -> Dict[str, Any]:
    """:func:`load_pickle` of an open file; ``path`` is for messages."""
    try:
        size = f.seek(0, os.SEEK_END)
        f.seek(0)
        data = _Finish()(_ArrayUnpickler(f, path, size).load())
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise _damaged(path, f"{type(error).__name__}: {error!s:.200}") from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__}, not a dict")
    return data


class _Name:
    """A name a pickle asks for; the thing itself is never handed out."""

    def __init__(self, call: Optional[Callable]):
        self.call = call


class _DType:
    """The fields of a pickled ``numpy.dtype``."""

    def __init__(self, name: Any):
        if name not in _ITEM_TYPES:
            raise ValueError(f"arrays of {name!r:.50}")
        self.name, self.order = name, "="

    def set(self, state: Any) -> None:
        _version, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(x is not None for x in rest[:3]):
            raise ValueError("a data type of several fields")
        self.order = order

    def stored(self) -> np.dtype:
        return np.dtype(self.name).newbyteorder(self.order)


class _Array:
    """The fields of a pickled array, and the array when all have been checked."""

    def __init__(self, *_: Any):
        self.value: Optional[np.ndarray] = None

    def set(self, state: Any) -> int:
        """Returns its size in bytes."""
        *_version, shape, dtype, fortran, data = state
        if self.value is not None or len(_version) > 1:
            raise ValueError("an array that is set twice")
        self.value = _array(data, dtype, shape, "F" if fortran else "C")
        return self.value.nbytes


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """A writable array, in the machine's byte order."""
    if isinstance(data, str):
        data = data.encode("latin1")
    if type(data) is not bytes or type(dtype) is not _DType or order not in ("C", "F"):
        raise ValueError("an array that is not made of bytes")
    if type(shape) is not tuple or len(shape) > 16 or not all(map(_is_length, shape)):
        raise ValueError("an array without a shape")
    count = 1
    for length in shape:
        count *= length
    stored = dtype.stored()
    if count * stored.itemsize != len(data):
        raise ValueError(f"an array of {count} numbers, and {len(data)} bytes")
    array = np.frombuffer(data, stored).astype(stored.newbyteorder("="), copy=True)
    return array.reshape(shape, order=order)


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), "C")[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError("text of another encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # how the older protocols write it


def _box_mode(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a BoxMode that is no number")
    return value  # Detectron2 makes a BoxMode of it


def _ordered(pairs: Any = ()) -> Dict[Any, Any]:
    if type(pairs) not in (list, tuple):
        raise ValueError("a dict of something else than pairs")
    made: Dict[Any, Any] = OrderedDict()
    for key, value in pairs:
        made[_key(key)] = value
    return made


def _key(key: Any) -> Any:
    """A key whose hash is cheap: those of nested tuples, and of huge numbers, can be made slow."""
    if type(key) not in _KEYS or (type(key) is int and not -(2**63) <= key < 2**63):
        raise ValueError(f"a {type(key).__name__} as a key")
    return key


class _File:
    """Reads no more than is there: nothing is set aside for what a pickle claims."""

    def __init__(self, f: IO[bytes], size: int):
        self.f, self.left = f, size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("it is cut off")
        return self._taken(self.f.read(count))

    def readline(self) -> bytes:
        return self._taken(self.f.readline())

    def _taken(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data


class _ArrayUnpickler(pickle._Unpickler):
    """
    The standard library's unpickler in Python, with the steps that call or fill objects replaced:
    a name it does not know is refused before it is looked up, and of those it knows the pickle gets
    stand-ins.
    """

    _CALLS = {
        ("collections", "OrderedDict"): _ordered,
        ("_codecs", "encode"): _encode,
        ("builtins", "bytes"): _no_bytes,
        ("__builtin__", "bytes"): _no_bytes,
        ("numpy", "dtype"): lambda name, *_: _DType(name),
        ("numpy", "ndarray"): None,  # only ever an argument
        ("detectron2.structures.boxes", "BoxMode"): _box_mode,  # of proposals
    }
    for _core in ("numpy.core", "numpy._core"):
        _CALLS[f"{_core}.multiarray", "_reconstruct"] = _Array
        _CALLS[f"{_core}.multiarray", "scalar"] = _scalar
        _CALLS[f"{_core}.numeric", "_frombuffer"] = _from_buffer
    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in (
            "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE",
            "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT",
            "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
            "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "TUPLE",
            "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT", "GET",
            "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL",
            "STACK_GLOBAL",
        )
    }  # fmt: skip

    def __init__(self, file: IO[bytes], path: str, size: int):
        super().__init__(_File(file, size), encoding="latin1")
        self._path = path
        # what calls may produce: a pickle refers to its bytes as often as it likes
        self._left = 4 * size + 2**20

    def find_class(self, module: str, name: str) -> _Name:
        if (module, name) not in self._CALLS:
            raise _refusal(self._path, ascii(f"{module}.{name}"[:200])[1:-1])
        return _Name(self._CALLS[module, name])

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("it holds more than its size allows")

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        call = self.stack[-1]
        if type(call) is not _Name or call.call is None or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        self._spend(sum(len(x) for x in arguments if isinstance(x, (str, bytes, list, tuple))))
        self.stack[-1] = call.call(*arguments)

    def _load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is OrderedDict and type(state) is dict:
            return  # the attribute _metadata of a module's state_dict(), which nothing here reads
        if type(self.stack[-1]) not in (_Array, _DType) or type(state) is not tuple:
            raise ValueError("a state of what is no array")
        self._spend(self.stack[-1].set(state) or 0)

    def _load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: List[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items for what is no list")
        self.stack[-1].extend(items)

    def _load_setitem(self) -> None:
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def _load_setitems(self) -> None:
        self._update(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._update(items)

    def _update(self, items: List[Any]) -> None:
        if type(self.stack[-1]) not in (dict, OrderedDict):
            raise ValueError("items for what is no dict")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            self.stack[-1][_key(key)] = value

    def _load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _refuse_persistent(self) -> None:
        raise _refusal(self._path, "a persistent load")

    dispatch.update(
        {
            pickle.REDUCE[0]: _load_reduce,
            pickle.BUILD[0]: _load_build,
            pickle.APPEND[0]: _load_append,
            pickle.APPENDS[0]: _load_appends,
            pickle.SETITEM[0]: _load_setitem,
            pickle.SETITEMS[0]: _load_setitems,
            pickle.DICT[0]: _load_dict,
            pickle.BYTEARRAY8[0]: _load_bytearray8,
            pickle.PERSID[0]: _refuse_persistent,
            pickle.BINPERSID[0]: _refuse_persistent,
        }
    )


class _Finish:
    """Put arrays in the place of their stand-ins, in a value of bounded depth and size."""

    def __init__(self):
        self.done: Dict[int, Tuple[Any, int]] = {}  # value and number of values in it, by id
        self.kept: List[Any] = []  # or ids might be used again

    def __call__(self, value: Any) -> Any:
        return self._finish(value, 0)[0]

    def _finish(self, value: Any, depth: int) -> Tuple[Any, int]:
        if not isinstance(value, (dict, list, tuple)):
            return self._leaf(value), 1
        if id(value) in self.done:
            return self.done[id(value)]
        if depth > MAX_NESTING:  # what contains itself, too
            raise ValueError(f"containers in containers, more than {MAX_NESTING} deep")
        self.kept.append(value)
        self.done[id(value)] = self._container(value, depth + 1)
        return self.done[id(value)]

    def _container(self, value: Any, depth: int) -> Tuple[Any, int]:
        inner = list(value.values()) if isinstance(value, dict) else list(value)
        finished = [self._finish(x, depth) for x in inner]
        count = 1 + sum(n for _, n in finished)
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        return _with(value, [x for x, _ in finished]), count

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, (_Name, _DType)):
            raise ValueError("a type in the place of a value")
        if isinstance(value, _Array):
            if value.value is None:
                raise ValueError("an array without content")
            return value.value
        return value


def _with(container: Any, values: List[Any]) -> Any:
    """A container with other values: itself, or a new tuple."""
    if isinstance(container, tuple):
        return tuple(values)
    if isinstance(container, list):
        container[:] = values
    else:
        container.update(zip(list(container), values))
    return container


# --------------------------------------------------------------------------------------- URLs
_URL = ("http://", "https://", "ftp://")
# Its zoo's files stay where stock Detectron2 keeps them, and finds them without a network.
_ZOO_HOST = "https://dl.fbaipublicfiles.com/"
_PLAIN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")


def is_url(path: str) -> bool:
    return path.startswith(_URL)


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
    Where a download is kept: below the cache's folder whatever the URL looks like, in a folder of
    its host and of all the rest of the URL.

    Raises:
        ValueError: the URL has no host.
    """
    cache, parts = get_cache_dir(cache_dir), urlparse(url)
    if url.startswith(_ZOO_HOST) and _PLAIN.fullmatch(url[len(_ZOO_HOST) :]):
        return os.path.join(cache, url[len(_ZOO_HOST) :])
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
    """Like iopath's, which waits for a silent server for ever; the file appears as a whole."""
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


class _Pickle:
    """What ``detectron2.data.build`` needs of the module ``pickle``, to read proposals."""

    @staticmethod
    def load(f: IO[bytes], encoding: str = "latin1") -> Dict[str, Any]:
        if is_trusted(f.name):
            return pickle.load(f, encoding=encoding)
        return load_pickle_file(f, f.name)


PathManager.register_handler(_URLHandler(), allow_override=True)
PathManager.register_handler(_OneDriveHandler(), allow_override=True)
detectron2_data.pickle = _Pickle
