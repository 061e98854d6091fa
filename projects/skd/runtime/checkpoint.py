"""Checkpoints that are written whole or not at all, and read without running what is in them."""

import glob
import logging
import os
from typing import Any, Dict, List

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .safe_files import (
    CheckpointError,
    DamagedCheckpointError,
    check_kinds,
    is_trusted,
    load_pickle,
    load_tensors,
)

logger = logging.getLogger(__name__)


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

    def _convert_ndarray_to_tensor(self, state_dict: Dict[str, Any]) -> None:
        super()._convert_ndarray_to_tensor(state_dict)
        check_kinds(state_dict, self.model.state_dict())

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
