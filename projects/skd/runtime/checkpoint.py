"""Checkpoints that are written whole or not at all, and read without running what is in them."""

import glob
import logging
import os
import pickle
import re
from collections import OrderedDict
from typing import Any, Dict, List

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer

logger = logging.getLogger(__name__)

# Files, separated as in PATH, whose maker you trust with running any code on this machine.
TRUST_VARIABLE = "SKD_TRUST_CHECKPOINTS"


class CheckpointError(RuntimeError):
    """A file that is no checkpoint, or is not to be trusted."""


class DamagedCheckpointError(CheckpointError):
    """A file that is cut off, or not a checkpoint at all."""


class SafeCheckpointer(DetectionCheckpointer):
    """
    Detectron2's checkpointer, with the same files in the same places, except that

    - a checkpoint appears in one step (write, fsync, rename), so that a crash or a full disk leaves
      the one before it and ``last_checkpoint`` as they were;
    - resuming goes back to the newest checkpoint that can be read;
    - a file that wants to run code when it is loaded is refused.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """
        Raises:
            OSError: it could not be written, for want of space as a rule; says what is still there.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:  # not a file system, and nothing to rename there
            return super().save(name, **kwargs)
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            _write(path, lambda f: torch.save(data, f))
            self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            before = self.get_checkpoint_file() if self.has_checkpoint() else "none"
            raise OSError(
                f"The checkpoint '{path}' could not be written: {error}. The last complete one is "
                f"unchanged: {before}. Free some disk space and continue with --resume."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            return super().tag_last_checkpoint(last_filename_basename)
        name = last_filename_basename.encode()
        _write(os.path.join(self.save_dir, "last_checkpoint"), lambda f: f.write(name))

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """
        Raises:
            CheckpointError: to resume from there are only files that cannot be read.
        """
        if not resume or not self.has_checkpoint():
            return super().resume_or_load(path, resume=resume)
        files = self._newest_first()
        for file in files:
            try:
                return self.load(file)
            except DamagedCheckpointError as error:
                logger.error(f"{error} Going back to the checkpoint before it.")
        raise CheckpointError(
            f"None of the checkpoints in '{self.save_dir}' can be read: {', '.join(files)}. "
            "Remove them to start anew."
        )

    def load(self, path: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error

    def _newest_first(self) -> List[str]:
        last = self.get_checkpoint_file()
        others = glob.glob(os.path.join(glob.escape(self.save_dir), "model_*.pth"))
        others = sorted(set(others) - {last}, key=os.path.getmtime, reverse=True)
        return ([last] if os.path.isfile(last) else []) + others

    def _load_file(self, f: str) -> Dict[str, Any]:
        if is_trusted(f):
            return super()._load_file(f)
        if f.endswith(".pkl"):
            data = load_pickle(f)
            if "model" in data and "__author__" in data:
                return data
            # of Caffe2, as Detectron2 reads it: detectors have "blobs", ImageNet models do not
            blobs = data.get("blobs", data)
            blobs = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        if f.endswith(".pyth"):
            load_tensors(f)  # or an error: Detectron2 then reads it with torch's own default
        return super()._load_file(f)

    def _torch_load(self, f: str) -> Dict[str, Any]:
        return super()._torch_load(f) if is_trusted(f) else load_tensors(f)


def _write(path: str, write) -> None:
    """Let a file appear under its name when all of it is on the disk."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


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


def load_tensors(path: str) -> Dict[str, Any]:
    """
    ``torch.load`` of tensors and plain containers, to the CPU.

    Raises:
        CheckpointError: it holds something else; :class:`DamagedCheckpointError`: it is no
            checkpoint.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise _refusal(path, wanted.group(1)) from None
        raise _damaged(path, str(error).splitlines()[-1]) from None
    except Exception as error:  # whatever a broken file may lead to, torch's reader raises it
        raise _damaged(path, error) from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__}, not a dict")
    return data


def _damaged(path: str, why: Any) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"'{path}' is damaged or no checkpoint: {why}.")


def load_pickle(path: str) -> Dict[str, Any]:
    """
    A pickle of NumPy arrays and plain containers, as Detectron2's model zoo has them.

    Raises:
        CheckpointError: it holds something else; :class:`DamagedCheckpointError`: it is no pickle.
    """
    try:
        with open(path, "rb") as f:
            data = _ArrayUnpickler(f, path).load()
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise _damaged(path, repr(error)) from error
    if not isinstance(data, dict):
        raise _damaged(path, f"it holds a {type(data).__name__}, not a dict")
    return data


def _empty_array(*_: Any) -> np.ndarray:
    """NumPy's ``_reconstruct``, which makes an array whose shape and content are set later."""
    return np.ndarray((0,), np.uint8)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)[0]


def _from_buffer(data: bytes, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


def _no_bytes() -> bytes:
    return b""  # how the older protocols write it


def _dtype(name: str, *_: Any) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError("arrays of objects")
    return dtype


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what makes arrays; a name it does not know is refused before it is looked up."""

    _ADMITTED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encode,
        ("builtins", "bytes"): _no_bytes,
        ("__builtin__", "bytes"): _no_bytes,
        ("numpy", "dtype"): _dtype,
        ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument
    }
    for _core in ("numpy.core", "numpy._core"):
        _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _empty_array
        _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
        _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer

    def __init__(self, file, path: str):
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise _refusal(self._path, f"{module}.{name}")
        return self._ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _refusal(self._path, f"a persistent load of {pid!r}")
