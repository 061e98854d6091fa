"""A run and its output folder: one run at a time, resumed as itself or with a word about it."""

import logging
import os
import time
import uuid
from typing import Any, Dict, List, Mapping, Optional, Sequence

from detectron2.engine import HookBase
from detectron2.utils import comm

from . import lock
from .checkpoint import CheckpointError, SafeCheckpointer
from .record import append_record, changes, describe_run, read_records
from .whole_files import remove_leftovers

logger = logging.getLogger(__name__)


class RunFolder(HookBase):
    """
    Opens the output folder for a training, and closes it after.

    - A second run in a folder at the same time is refused.
    - A new run in a folder with another run's checkpoints says so, and sets their
      ``last_checkpoint`` aside, so that a later ``--resume`` does not take them for its own.
    - A resumed run is compared with what ``runs.jsonl`` says of it. What cannot go on is an error
      that names the changes; the others are one warning.
    - ``runs.jsonl`` gets a line.
    """

    def __init__(
        self,
        checkpointer: SafeCheckpointer,
        config: Mapping[str, Any],
        datasets: Sequence[str],
        seed: int,
    ):
        """
        Args:
            checkpointer: of the run; its folder is the run's.
            config: the whole config, nested.
            datasets: names of those trained and tested on.
            seed: of the run.
        """
        self.checkpointer = checkpointer
        self.config, self.datasets, self.seed = config, datasets, seed
        self._open = False

    @property
    def folder(self) -> str:
        return self.checkpointer.save_dir

    def resume_or_load(self, weights: str, resume: bool) -> int:
        """
        In place of the checkpointer's.

        Args:
            weights: to start from; not used when there is a checkpoint to resume from.
            resume: whether to go on from the folder's last checkpoint, if there is one.

        Returns:
            The iteration to start at.

        Raises:
            FolderInUseError: another run is using the folder.
            CheckpointError: the checkpoint cannot be read, or does not fit what is trained now.
        """
        self._lock()
        loaded = self.checkpointer.read_last() if resume else None
        record = describe_run(self.checkpointer.model, self.datasets, self.seed, self.config)
        if loaded is None:
            self._start_anew()
            self.checkpointer.resume_or_load(weights, resume=False)
        else:
            self._go_on(*loaded, record)
        self._write(record)
        return self.trainer.iter + 1 if loaded is not None else 0

    def _lock(self) -> None:
        problem = None
        if comm.is_main_process() and "://" not in self.folder:
            try:
                os.makedirs(self.folder, exist_ok=True)
                why = lock.acquire(self.folder)
                if why:
                    logger.warning(
                        f"'{self.folder}' cannot be locked ({why}): see to it that only one run "
                        "uses it at a time."
                    )
                remove_leftovers(self.folder)
            except lock.FolderInUseError as error:
                problem = error
        problem = comm.all_gather(problem)[0]
        if problem is not None:
            raise problem
        self._open = True

    def _start_anew(self) -> None:
        if comm.is_main_process():
            _set_aside(self.checkpointer)
        self.checkpointer.run_id = comm.all_gather(uuid.uuid4().hex)[0]

    def _go_on(self, path: str, data: Dict[str, Any], record: Optional[Dict[str, Any]]) -> None:
        run_id = data.get("run")
        self.checkpointer.run_id = run_id or comm.all_gather(uuid.uuid4().hex)[0]
        changed: List[str] = []
        if comm.is_main_process() and record is not None:
            before = [r for r in read_records(self.folder) if r.get("run", "") == (run_id or "")]
            changed = changes(before[-1], record) if before else []
        changed = comm.all_gather(changed)[0]
        words = "; ".join(changed)
        try:
            self.checkpointer.resume_from(path, data)
        except CheckpointError as error:
            since = f" Changed since that run started: {words}." if words else ""
            raise CheckpointError(f"{error}{since}") from error
        if changed and comm.is_main_process():
            logger.warning(
                f"Resuming in '{self.folder}' with another configuration than the run had before: "
                f"{words}. The learning rate's base, momentum, weight decay and the seed stay the "
                "checkpoint's, as in Detectron2; all other changes take effect."
            )

    def _write(self, record: Optional[Dict[str, Any]]) -> None:
        if record is not None:
            append_record(self.folder, {**record, "run": self.checkpointer.run_id})

    def before_train(self) -> None:
        """For who trains without :meth:`resume_or_load`."""
        if self._open:
            return
        self._lock()
        self._start_anew()
        self._write(describe_run(self.checkpointer.model, self.datasets, self.seed, self.config))

    def after_train(self) -> None:
        self._open = False
        if comm.is_main_process():
            lock.release(self.folder)


def _set_aside(checkpointer: SafeCheckpointer) -> None:
    """Take ``last_checkpoint`` from where a later ``--resume`` would find it."""
    if not checkpointer.has_checkpoint():
        return
    folder, last = checkpointer.save_dir, checkpointer.get_checkpoint_file()
    aside = f"last_checkpoint.before-{time.strftime('%Y%m%d-%H%M%S')}"
    paths = os.path.join(folder, "last_checkpoint"), os.path.join(folder, aside)
    try:
        if "://" in folder:
            checkpointer.path_manager.mv(*paths)
        else:
            os.replace(*paths)
    except Exception as error:  # a remote folder's handler may raise anything
        raise CheckpointError(
            f"OUTPUT_DIR is '{folder}', which has another run's checkpoints, and its "
            f"last_checkpoint cannot be renamed ({error}); it must be a folder of its own."
        ) from error
    logger.warning(
        f"'{folder}' has the checkpoints of another run, and this is a new one, without --resume: "
        f"it starts anew. Where the other run was is kept in '{aside}' (it names "
        f"'{os.path.basename(last)}'); files of the same names will be written over."
    )
