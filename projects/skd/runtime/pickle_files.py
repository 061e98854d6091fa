"""
``.pkl`` files from elsewhere, weights and proposals, read without running what is in them.

Detectron2 reads them with ``pickle.load``, which runs whatever a file asks for. Importing this
module gives its reader of proposals the pickles of :func:`load_pickle`. docs/security.md says what
is promised and what is not.
"""

import os
import pickle
from collections import OrderedDict
from typing import IO, Any, Callable, Dict, List, Optional, Tuple

import numpy as np
from detectron2.data import build as detectron2_data

from .file_kinds import HEAD, check_pickle
from .trust import CheckpointError, damaged, is_trusted, refusal

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
        check_pickle(f.read(HEAD))
        f.seek(0)
        data = _Finish()(_ArrayUnpickler(f, path, size).load())
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        name = "" if type(error) is ValueError else f"{type(error).__name__}: "  # one of words
        raise damaged(path, f"{name}{error!s:.200}") from error
    if not isinstance(data, dict):
        raise damaged(path, f"it holds a {type(data).__name__}, not a dict")
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
            raise refusal(self._path, ascii(f"{module}.{name}"[:200])[1:-1])
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
        raise refusal(self._path, "a persistent load")

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


class _Pickle:
    """What ``detectron2.data.build`` needs of the module ``pickle``, to read proposals."""

    @staticmethod
    def load(f: IO[bytes], encoding: str = "latin1") -> Dict[str, Any]:
        if is_trusted(f.name):
            return pickle.load(f, encoding=encoding)
        return load_pickle_file(f, f.name)


detectron2_data.pickle = _Pickle
