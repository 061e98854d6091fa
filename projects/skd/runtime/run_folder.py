"""A run and its output folder: one run at a time, resumed as itself or with a word about it."""

import logging
import os
import time
import uuid
from typing import Any, Callable, Dict, Optional

from detectron2.engine import HookBase
from detectron2.utils import comm

from . import lock
from .checkpoint import CheckpointError, SafeCheckpointer, new_run_from
from .downloads import is_remote
from .record import FILE, RunFacts, append_record, changes, describe_run, launch_id, read_records
from .whole_files import remove_leftovers
from .words import called

logger = logging.getLogger(__name__)


def open_folder(folder: str) -> None:
    """
    Make the folder, and keep other processes' runs out of it until its run ends. To be called in
    all processes of a run, before anything is written there; again is no error.

    Raises:
        FolderInUseError: another run is using the folder.
        OSError: it cannot be made.
    """
    problem = None
    if comm.is_main_process() and not is_remote(folder):
        try:
            _lock(folder)
        except (lock.FolderInUseError, OSError) as error:
            problem = error
    problem = comm.all_gather(problem)[0]
    if problem is not None:
        raise problem


def _lock(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: NUL in it
        raise OSError(
            f"{called('output_dir')} is '{folder}', which cannot be made: {error}"
        ) from error
    why = lock.acquire(folder)
    if why is None:
        remove_leftovers(folder)
        return
    logger.warning(
        f"'{folder}' cannot be locked ({why}): see to it that only one run uses it at a time."
    )


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
        facts: RunFacts,
        matters: Callable[[str], bool] = lambda key: True,
    ):
        """
        Args:
            checkpointer: of the run; its folder is the run's.
            facts: for the record, and to compare with that of a run to resume.
            matters: whether another value of a key of the config changes what is learned.
        """
        self.checkpointer, self.facts, self._matters = checkpointer, facts, matters
        self._open = False

    @property
    def folder(self) -> str:
        return self.checkpointer.save_dir

    def resume_or_load(self, weights: str, resume: bool) -> int:
        """
        What the checkpointer's method of this name does, for a run and its folder.

        Args:
            weights: to start from; not used when there is a checkpoint to resume from.
            resume: whether to go on from the folder's last checkpoint, if there is one. After
                torchrun has restarted the processes it is so if this launch's run is the folder's
                last one.

        Returns:
            The iteration to start at.

        Raises:
            FolderInUseError: another run is using the folder.
            CheckpointError: the checkpoint cannot be read, or does not fit what is trained now.
        """
        self._enter()
        resume = resume or self._is_restart()
        loaded = self.checkpointer.read_last() if resume else None
        record = describe_run(self.facts)
        if loaded is None:
            self._start_anew(resume)
            self.checkpointer.resume_or_load(weights, resume=False)
        else:
            self._go_on(*loaded, record)
        start = self.trainer.iter + 1 if loaded is not None else 0
        self._write(record, start)
        return start

    def _is_restart(self) -> bool:
        """Whether the last run in the folder is that of this very launch."""
        runs = [r for r in read_records(self.folder) if "run" in r]
        same = bool(runs) and launch_id() is not None and runs[-1].get("launch") == launch_id()
        return comm.all_gather(same)[0]

    def _enter(self) -> None:
        open_folder(self.folder)
        self._open = True

    def _start_anew(self, resume: bool = False) -> None:
        if comm.is_main_process() and resume:
            logger.warning(
                f"Nothing to resume from in '{self.folder}': it has no checkpoint of its last run. "
                "TRAINING STARTS ANEW, at iteration 0."
            )
        elif comm.is_main_process():
            _set_aside(self.checkpointer)
        self.checkpointer.run_id = comm.all_gather(uuid.uuid4().hex)[0]

    def _go_on(self, path: str, data: Dict[str, Any], record: Optional[Dict[str, Any]]) -> None:
        run_id = data.get("run")
        self.checkpointer.run_id = run_id or comm.all_gather(uuid.uuid4().hex)[0]
        before = self._record_of(run_id, data.get("iteration"))
        changed = []
        if record is not None:
            changed = changes(before, record, self._matters, self.facts.notes)
            if not before:
                logger.warning(
                    f"'{os.path.join(self.folder, FILE)}' has no line of the run to resume: what "
                    "has changed since it started cannot be told."
                )
        changed, kind = comm.all_gather((changed, before.get("kind", "")))[0]
        self._check_kind(path, kind)
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

    def _record_of(self, run_id: Optional[str], iteration: Any) -> Dict[str, Any]:
        """The line in force when a checkpoint was written; empty if there is none."""
        lines = [r for r in read_records(self.folder) if r.get("run", "") == (run_id or "")]
        if isinstance(iteration, int):  # later ones were of starts after it
            lines = [r for r in lines if r.get("start", 0) <= iteration] or lines
        return lines[-1] if lines else {}

    def _check_kind(self, path: str, before: str) -> None:
        now = self.facts.kind
        if before and now and before != now:
            raise CheckpointError(
                f"The run of '{path}' was {before}, and the one to go on with is {now}. Resume "
                "with the command it was started with (runs.jsonl has it). Or "
                f"{new_run_from(path)}."
            )

    def _write(self, record: Optional[Dict[str, Any]], start: int = 0) -> None:
        if record is not None:
            of_run = {"run": self.checkpointer.run_id, "start": start}
            append_record(self.folder, {**record, **of_run})

    def before_train(self) -> None:
        """Open the folder for a training without :meth:`resume_or_load`."""
        if self._open:
            return
        self._enter()
        self._start_anew()
        self._write(describe_run(self.facts))

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
        if is_remote(folder):
            checkpointer.path_manager.mv(*paths)
        else:
            os.replace(*paths)
    except Exception as error:  # a remote folder's handler may raise anything
        raise CheckpointError(
            f"{called('output_dir')} is '{folder}', which has another run's checkpoints, and its "
            f"last_checkpoint cannot be renamed ({error}); it must be a folder of its own."
        ) from error
    logger.warning(
        f"'{folder}' has the checkpoints of another run, and this is a new one, without --resume: "
        f"it starts anew. Where the other run was is kept in '{aside}' (it names "
        f"'{os.path.basename(last)}'); files of the same names will be written over."
    )
