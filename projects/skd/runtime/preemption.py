"""Stopping in good order when the scheduler, or the user, wants the machine back."""

import logging
import math
import os
import signal
import sys
import threading
import time
from typing import Any, Callable, List, Optional, Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import distributed as dist
from torch import nn

logger = logging.getLogger(__name__)

# sysexits.h's EX_TEMPFAIL: the job did not fail, run it again (with --resume)
EXIT_REQUEUE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Slurm's --signal=USR1@60: a word ahead of the SIGTERM that comes anyway. Not on Windows.
WARNING = getattr(signal, "SIGUSR1", None)
# the terminal is gone; under nohup it is ignored, and stays so. Not on Windows.
HANGUP = getattr(signal, "SIGHUP", None)
SIGNALS += tuple(number for number in (WARNING, HANGUP) if number is not None)
# a launcher and a terminal may both deliver the one signal
SAME_SIGNAL_SECONDS = 5.0
# Processes agree on stopping every so many iterations, on the host. Schedulers give 30 seconds.
AGREE_EVERY = 5
# for the other processes to see that the checkpoint is complete
LAST_WORD_SECONDS = 10.0


def signals_to_take() -> List[int]:
    """``SIGNALS``, without those that somebody else has taken, or ignores, for good reasons."""
    if_free = (WARNING, HANGUP)
    return [s for s in SIGNALS if s not in if_free or signal.getsignal(s) == signal.SIG_DFL]


class PreemptionHook(HookBase):
    """
    Ends the training after SIGTERM, SIGINT, SIGUSR1 or SIGHUP: at the end of an iteration, which
    all processes agree on, writes a checkpoint and exits with ``EXIT_REQUEUE``. A second signal
    stops at once, without one, unless the first was SIGUSR1. SIGUSR1 and SIGHUP are left alone
    where somebody else handles or ignores them, as nohup does. During an evaluation the model does
    not change, so the checkpoint is written beside it, and the processes exit without waiting for
    its end. Register this hook last, but for hooks that end the training by themselves.

    A thread takes the signals, because the main thread may be waiting for another process inside
    a collective, where Python's handlers do not run. Outside the main thread (in a notebook's
    worker, say) no signal is taken, and nothing else changes.
    """

    def __init__(self, checkpointer: Checkpointer, others: Sequence[nn.Module] = ()):
        """
        Args:
            checkpointer: of the run.
            others: models that are evaluated besides the trainer's, as an average of its weights.
        """
        self.checkpointer, self._others = checkpointer, others
        self._received: Optional[float] = None
        self._warned = False
        self._evaluating = False
        # held while the model changes, or while it is saved beside an evaluation
        self._busy = threading.Lock()
        self._before: dict = {}
        self._thread: Optional[threading.Thread] = None

    @property
    def is_stopping(self) -> bool:
        """Whether this process has a signal that ends the training."""
        return self._received is not None

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        # the thread does what is to be done: a handler only keeps the signal from ending the run
        self._before = {s: signal.signal(s, _ignore) for s in signals_to_take()}
        models = [self.trainer.model, *self._others]
        self._watch = [m.register_forward_pre_hook(self._note_evaluation) for m in models]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            number = os.read(self._pipe[0], 1)[0]
            if number == _END:
                return
            if number in self._before:
                self._receive(number)
            if self._received is not None:
                self._stop_evaluation()

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if self._warned and number != WARNING:
            self._warned, self._received = False, now
        elif self._received is None:
            self._received, self._warned = now, number == WARNING
            logger.warning(
                f"Received {signal.Signals(number).name}: stopping at the end of this iteration, "
                "or of one of the next that all processes agree on."
            )
        elif number != WARNING and now - self._received > SAME_SIGNAL_SECONDS:
            _exit(128 + number)

    def _note_evaluation(self, model: nn.Module, inputs: Any) -> None:
        if model.training or self._evaluating:
            return
        self._evaluating = True
        if self._received is not None:
            os.write(self._pipe[1], bytes([_CHECK]))

    def before_step(self) -> None:
        with self._busy:
            self._evaluating = False

    def _stop_evaluation(self) -> None:
        """Stop during an evaluation: process 0 saves, and all that have the signal exit."""
        if not comm.is_main_process():
            # if process 0 has no signal, all stop when the evaluation is over
            if not _wait_for_checkpoint(lambda: self._evaluating):
                return
            _exit(EXIT_REQUEUE)
        with self._busy:
            if not self._evaluating:
                return
            self._save(min(self.trainer.iter, self.trainer.max_iter - 1))
            _announce_checkpoint()
            logger.warning("Stopped during an evaluation. Continue with --resume.")
            _exit(EXIT_REQUEUE)

    def _save(self, iteration: int) -> None:
        # it has been saved: the last as model_final, and one before the first that is trained now
        if self.trainer.start_iter <= iteration < self.trainer.max_iter - 1:
            self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def after_step(self) -> None:
        last = self.trainer.iter + 1 >= self.trainer.max_iter
        if last or not self._agreed():  # what ends anyway ends as it would have
            return
        for hook in self.trainer._hooks:
            getattr(hook, "before_checkpoint", lambda: None)()
        self._save(self.trainer.iter)
        comm.synchronize()
        logger.warning(f"Stopped after iteration {self.trainer.iter}. Continue with --resume.")
        sys.exit(EXIT_REQUEUE)

    def _agreed(self) -> bool:
        """Whether any process has the signal; the same answer in all of them."""
        if comm.get_world_size() == 1:
            return self._received is not None
        if (self.trainer.iter + 1) % AGREE_EVERY:
            return False
        # on the host, past the GPU's queue
        flag = torch.tensor([int(self._received is not None)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
        return flag.numpy()[0] > 0

    def after_train(self) -> None:
        if self._thread is None:
            return
        if self._evaluating and sys.exc_info()[0] is not None:
            # a worker of the evaluation's loader died of the signal, maybe: let the thread see it
            self._thread.join(timeout=1)
        with self._busy:  # a checkpoint beside an evaluation is written to its end
            self._evaluating = False
        os.write(self._pipe[1], bytes([_END]))
        self._thread.join()
        self._thread = None
        for handle in self._watch:
            handle.remove()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_pipe)
        for end in self._pipe:
            os.close(end)


# no signal has these numbers
_CHECK, _END = 254, 255


def _ignore(number: int, frame) -> None:
    pass


def _exit(code: int) -> None:
    """Leave from a thread, whatever the others wait for."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where nobody reads the output any more
        os._exit(code)


# Process 0 tells the others that the checkpoint is complete through the store, not by a collective:
# their main threads are somewhere in an evaluation.
def _store() -> dist.Store:
    return dist.PrefixStore("skd_preemption", dist.distributed_c10d._get_default_store())


def _announce_checkpoint() -> None:
    others = comm.get_world_size() - 1
    if others:
        store = _store()
        store.set("saved", "1")
        # it may be this process that keeps the store
        _until(lambda: store.add("seen", 0) >= others, LAST_WORD_SECONDS)


def _wait_for_checkpoint(still: Callable[[], bool]) -> bool:
    store = _store()
    saved = False

    def over() -> bool:
        nonlocal saved
        saved = store.check(["saved"])
        return saved or not still()

    _until(over, math.inf)
    if saved:
        store.add("seen", 1)
    return saved


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False
