"""Checkpoints that are written whole or not at all, and read without running what is in them."""

import errno
import fnmatch
import logging
import os
from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils import comm

from .downloads import CATALOG, is_remote
from .memory import is_out_of_memory
from .pickle_files import load_pickle
from .record import read_records
from .torch_files import check_kinds, load_tensors
from .trust import CheckpointError, DamagedCheckpointError, is_trusted
from .weights_file import (
    NON_FINITE_VARIABLE,
    check_finite,
    not_weights,
    where_not_finite,
    with_model,
)
from .whole_files import write_whole
from .words import called

logger = logging.getLogger(__name__)


class SafeCheckpointer(DetectionCheckpointer):
    """
    Detectron2's checkpointer, with the same files in the same places, except that

    - a checkpoint appears in one step (write, fsync, rename), so that a crash or a full disk leaves
      the one before it and ``last_checkpoint`` as they were;
    - resuming goes back to the newest checkpoint that can be read;
    - a file that wants to run code when it is loaded is refused, and one that holds something else
      than tensors by name, or numbers that are not finite, is an error of one line.
    """

    # Names the run in its checkpoints, so that resuming takes no other run's. None: not told.
    run_id: Optional[str] = None
    _path = ""  # of what is being loaded, for errors

    @property
    def loaded_from(self) -> str:
        """The file that was loaded last; "" if none was, as for an empty name."""
        return self._path

    def save(self, name: str, **kwargs: Any) -> None:
        """
        Raises:
            OSError: it could not be written, for want of space as a rule; says what is still there.
            FloatingPointError: the model has NaN or infinity; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        self._check_finite(name)
        if self.run_id:
            kwargs["run"] = self.run_id
        if is_remote(self.save_dir):  # not a file system, and nothing to rename there
            return super().save(name, **kwargs)
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            write_whole(path, lambda f: torch.save(data, f))
            self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OSError(
                f"The checkpoint '{path}' could not be written: {error}. The last complete one is "
                f"unchanged: {self._last_name()}. Free some disk space and continue with "
                "--resume."
            ) from error

    def _last_name(self) -> str:
        """The file of the last complete checkpoint, or "none", for messages."""
        return self.get_checkpoint_file() if self.has_checkpoint() else "none"

    def _check_finite(self, name: str) -> None:
        """No later loss shows what the last step has done, and nobody could load the file."""
        bad = where_not_finite(self.model.state_dict(), self.model)
        if bad:
            raise FloatingPointError(
                f"The model has NaN or infinite numbers in {bad}: '{name}.pth' is not written. The "
                f"last checkpoint: {self._last_name()}. Lower {called('learning_rate')} or the "
                f"losses' weights, or set {NON_FINITE_VARIABLE}=1 to write such numbers."
            )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if is_remote(self.save_dir):
            return super().tag_last_checkpoint(last_filename_basename)
        name = last_filename_basename.encode()
        write_whole(os.path.join(self.save_dir, "last_checkpoint"), lambda f: f.write(name))

    def get_checkpoint_file(self) -> str:
        """Detectron2's; "" where ``last_checkpoint`` is damaged, and names none."""
        try:
            return super().get_checkpoint_file()
        except UnicodeDecodeError:
            logger.error(f"'{self.save_dir}/last_checkpoint' is damaged: it is no name of a file.")
            return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """
        Raises:
            CheckpointError: to resume from there are only files that cannot be read.
        """
        loaded = self.read_last() if resume else None
        if loaded is None:
            return super().resume_or_load(path, resume=False)
        return self.resume_from(*loaded)

    def read_last(self) -> Optional[Tuple[str, Dict[str, Any]]]:
        """
        The newest checkpoint of the folder's last run that is not damaged. Process 0 chooses it;
        all have to call this, and each reads the file itself if it can.

        Returns:
            Its path and content, or None if the folder has none.

        Raises:
            CheckpointError: all of them are damaged.
            OSError, MemoryError: reading failed, which says nothing about the file.
        """
        files, tagged, there = comm.all_gather(self._newest_first())[0]
        # What last_checkpoint names is taken as it is. If that is gone or damaged, another one is,
        # but only if it is the last run's own: the folder may have other runs' too.
        searching, found_damaged = not there, False
        run_id = self._last_run() if searching else None
        if not tagged and run_id is None:
            return None
        for file in files:
            try:
                data = self._read_everywhere(file)
            except DamagedCheckpointError as error:
                logger.error(f"{error} Going back to the checkpoint before it.")
                run_id, searching, found_damaged = run_id or self._last_run(), True, True
                continue
            if not searching:
                return file, data
            if self.checkpointables and not set(self.checkpointables) & set(data):
                logger.info(f"'{file}' has weights only, and is passed over.")
                continue
            if run_id and data.get("run") not in ((None, run_id) if tagged else (run_id,)):
                logger.error(f"'{file}' is another run's checkpoint, and passed over.")
                continue
            return file, data
        if not files or not (tagged or found_damaged):
            return None
        raise CheckpointError(
            f"None of the checkpoints in '{self.save_dir}' can be read: {', '.join(files)}. "
            f"Start anew without --resume, in another {called('output_dir')}."
        )

    def _last_run(self) -> Optional[str]:
        """The last run's id in ``runs.jsonl``: the newest checkpoint cannot say whose it is."""
        runs = [r["run"] for r in read_records(self.save_dir) if "run" in r]
        return comm.all_gather(runs[-1] if runs else None)[0]

    def _read_everywhere(self, file: str) -> Dict[str, Any]:
        try:
            data, error = self._read(file), None
        except Exception as e:
            data, error = None, e
        errors = comm.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        if errors[0] is not None:
            raise error or CheckpointError(f"Process 0 cannot read '{file}': {errors[0]}")
        failed = [f"process {i} ({e})" for i, e in enumerate(errors) if e is not None]
        if not failed:
            return data
        # a folder that is not shared, or a network file system that has not caught up
        if comm.is_main_process():
            logger.warning(
                f"'{file}' cannot be read by {', '.join(failed)}: all get the content that "
                "process 0 has read."
            )
        return comm.all_gather(data if comm.is_main_process() else None)[0]

    def _read(self, file: str) -> Dict[str, Any]:
        self._path = file
        path = self.path_manager.get_local_path(file)
        try:
            return self._torch_load(path)
        except DamagedCheckpointError as error:
            raise _reason_outside(path, error) or error

    def resume_from(self, path: str, data: Dict[str, Any]) -> Dict[str, Any]:
        """
        Take up what :meth:`read_last` has read.

        Returns:
            What is in it besides the model and the states of training.

        Raises:
            CheckpointError: it does not fit the model; nothing has been changed then.
        """
        self._path = path
        if self.checkpointables:
            self._check_fits(path, data)
        self.logger.info(f"Resuming from {path}")
        incompatible = self._load_model(data)
        if incompatible is not None:
            self._log_incompatible_keys(incompatible)
        try:
            for key, obj in self.checkpointables.items():
                _take_up(path, key, obj, data.pop(key))
        except CheckpointError as error:  # of other layers, say: these are known by name
            raise CheckpointError(f"{error}{_without_place(incompatible)}") from error
        return data

    def _check_fits(self, path: str, data: Dict[str, Any]) -> None:
        gone = [key for key in self.checkpointables if data.get(key) is None]
        if gone:
            raise CheckpointError(
                f"'{path}' has weights only, and no state of {', '.join(gone)} to resume from; "
                f"{new_run_from(path)}."
            )
        before = {k.removeprefix("module."): v for k, v in data["model"].items()}
        bad = []
        for name, value in self.model.state_dict().items():
            if name in ("pixel_mean", "pixel_std") and name not in before:
                continue  # Detectron2 takes them from the config
            if name not in before:
                bad.append(f"{name} is not in it")
            elif tuple(before[name].shape) != tuple(value.shape):
                shapes = tuple(before[name].shape), tuple(value.shape)
                bad.append(f"{name} has shape {shapes[0]} in it and {shapes[1]} in the model")
        if bad:
            raise CheckpointError(
                f"'{path}' is of another model than the one to train; {len(bad)} of the model's "
                f"tensors do not fit: {'; '.join(bad[:3])}{'; ...' * (len(bad) > 3)}. Resume with "
                f"the configuration the run was started with. Or {new_run_from(path)}."
            )

    def load(self, path: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        self._path = path
        _check_catalog(path)
        if path and os.path.isdir(path):
            raise CheckpointError(f"'{path}' is a folder; weights are a file: name one in it.")
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error

    def _newest_first(self) -> Tuple[List[str], bool, bool]:
        """The folder's checkpoints, whether its last_checkpoint names one, and if that is there."""
        tagged = bool(self.save_dir) and self.has_checkpoint()
        # a remote folder's handler may know no isdir: it is asked for files only
        if not tagged and (is_remote(self.save_dir) or not os.path.isdir(self.save_dir)):
            return [], False, False
        last = self.get_checkpoint_file() if tagged else ""
        names = fnmatch.filter(self.path_manager.ls(self.save_dir), "model_*.pth")
        others = {os.path.join(self.save_dir, name) for name in names} - {last}
        first = [last] if tagged and self.path_manager.isfile(last) else []
        return first + sorted(others, key=_age, reverse=True), tagged, bool(first)

    def _load_file(self, f: str) -> Dict[str, Any]:
        return with_model(self._path, self._load_kind(f))

    def _load_kind(self, f: str) -> Dict[str, Any]:
        """What is in a file, of any of the kinds that Detectron2 knows."""
        if is_trusted(f):
            return super()._load_file(f)
        if f.endswith(".pkl"):
            data = load_pickle(f)
            if "model" in data and "__author__" in data:
                return data
            # of Caffe2, as Detectron2 reads it: detectors have "blobs", ImageNet models do not
            blobs = data.get("blobs", data)
            named = isinstance(blobs, dict) and all(isinstance(k, str) for k in blobs)
            if not named or not blobs:
                raise not_weights(self._path, blobs)
            blobs = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
        if f.endswith(".pyth"):
            load_tensors(f)  # or an error: Detectron2 then reads it with torch's own default
        return super()._load_file(f)

    def _convert_ndarray_to_tensor(self, state_dict: Dict[str, Any]) -> None:
        super()._convert_ndarray_to_tensor(state_dict)
        check_kinds(state_dict, self.model.state_dict())
        check_finite(self._path, state_dict, self.model)

    def _torch_load(self, f: str) -> Dict[str, Any]:
        data = super()._torch_load(f) if is_trusted(f) else load_tensors(f)
        return with_model(self._path, data)  # Detectron2 takes what has no "model" for one


def new_run_from(path: str) -> str:
    """Advice where a checkpoint cannot be resumed from."""
    return (
        f"start a new run from its weights: {called('weights')} {path}, another "
        f"{called('output_dir')}, no --resume"
    )


def _without_place(incompatible: Any) -> str:
    """Of which modules a checkpoint has weights that the model lacks, in words."""
    keys = [] if incompatible is None else incompatible.unexpected_keys
    modules = dict.fromkeys(".".join(key.split(".")[:3]) for key in keys)
    if not modules:
        return ""
    return f" The checkpoint has weights of {', '.join(modules)}, and the model no such modules."


def _take_up(path: str, key: str, part: Any, state: Any) -> None:
    try:
        part.load_state_dict(state)
    except (AttributeError, LookupError, TypeError) as error:  # of a file that somebody has edited
        raise CheckpointError(
            f"'{path}' has a state of {key} that is none ({type(error).__name__}: {error}); "
            f"{new_run_from(path)}."
        ) from error


def _check_catalog(path: str) -> None:
    if path.startswith(CATALOG):
        try:
            ModelCatalog.get(path.removeprefix(CATALOG))
        except RuntimeError as error:
            raise CheckpointError(f"{called('weights')} is '{path}': {error}.") from None


def _age(file: str) -> Tuple[float, str]:
    """Sorts by time; where a remote folder tells none, by name, with model_final the oldest."""
    try:
        return os.path.getmtime(file), ""
    except OSError:
        return 0.0, os.path.basename(file).replace("final", "")


def _reason_outside(path: str, error: DamagedCheckpointError) -> Optional[BaseException]:
    """What kept a file from being read, if that was not the file's content."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno != errno.EINVAL:  # a place outside of the file
        return cause
    if is_out_of_memory(cause):
        return cause
    try:  # torch's reader makes an error of its own of a device's
        with open(path, "rb") as f:
            while f.read(1 << 24):
                pass
    except OSError as unreadable:
        return unreadable
    return None
