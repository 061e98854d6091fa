"""
``.pth`` files from elsewhere, read without running what is in them. docs/security.md says what is
promised and what is not.
"""

import io
import os
import pickle
import pickletools
import re
from typing import IO, Any, Dict, Iterator, List, Mapping

import torch

from .file_kinds import HEAD, check_torch
from .pickle_files import MAX_NESTING, MAX_VALUES
from .trust import CheckpointError, damaged, refusal
from .whole_files import check_sums


def load_tensors(path: str) -> Dict[str, Any]:
    """
    ``torch.load`` of tensors and plain containers, to the CPU.

    Raises:
        CheckpointError: it holds something else; :class:`DamagedCheckpointError`: it is no
            checkpoint.
    """
    try:
        with open(path, "rb") as f:
            check_torch(f.read(HEAD))
        _check_hashes(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
        check_sums(path)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise refusal(path, wanted.group(1)) from None
        reason = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
        raise damaged(path, reason.group(1)[:200] if reason else error) from None
    except Exception as error:  # whatever a broken file may lead to, torch's reader raises it
        raise damaged(path, error) from error
    if not isinstance(data, dict):
        raise damaged(path, f"it holds a {type(data).__name__}, not a dict")
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


# Before a file of tensors is read, these take some 15 s; torch.save has about 30 for a tensor.
MAX_OPERATIONS = 5_000_000
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
        self.stack: List[Any] = []  # above the last mark
        self.below: List[List[Any]] = []  # each mark's
        self.memo: Dict[int, Any] = {}

    def walk(self) -> None:
        for count, (op, argument, _) in enumerate(pickletools.genops(self.f)):
            if count > MAX_OPERATIONS:
                raise ValueError(f"more than {MAX_OPERATIONS} operations")
            self._step(op, argument)

    def _step(self, op: pickletools.OpcodeInfo, argument: Any) -> None:
        if "PUT" in op.name or op.name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif op.name.endswith("GET"):
            self.stack.append(self.memo[int(argument)])
        elif op.name == "DUP":
            self.stack.append(self.stack[-1])
        elif op.name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        else:
            self._replace(op, self._take(op))

    def _take(self, op: pickletools.OpcodeInfo) -> List[List[int]]:
        """Pop the operands of an operation."""
        before, taken = op.stack_before, []
        if pickletools.markobject in before:
            taken, self.stack = self.stack, self.below.pop()
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
