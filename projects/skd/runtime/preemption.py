"""Stopping in good order when the scheduler, or the user, wants the machine back."""

import logging
import signal
import sys
import time
from typing import Optional

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import distributed as dist

logger = logging.getLogger(__name__)

# sysexits.h's EX_TEMPFAIL: the job did not fail, run it again (with --resume)
EXIT_REQUEUE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# a launcher and a terminal may both deliver the one signal
SAME_SIGNAL_SECONDS = 2.0


class PreemptionHook(HookBase):
    """
    After SIGTERM or SIGINT: at the end of the iteration, which all processes agree on, write a
    checkpoint and exit with ``EXIT_REQUEUE``. A second signal stops at once, without one.
    """

    def __init__(self, checkpointer: Checkpointer):
        self.checkpointer = checkpointer
        self._received: Optional[float] = None

    def before_train(self) -> None:
        self._before = {s: signal.signal(s, self._receive) for s in SIGNALS}

    def _receive(self, number: int, frame) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received = now
            logger.warning(
                f"Received {signal.Signals(number).name}: stopping at the end of this iteration."
            )
        elif now - self._received > SAME_SIGNAL_SECONDS:
            sys.exit(128 + number)

    def after_step(self) -> None:
        stop = torch.tensor(int(self._received is not None))
        if comm.get_world_size() > 1:
            stop = stop.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(stop, dist.ReduceOp.MAX)
        last = self.trainer.iter + 1 >= self.trainer.max_iter
        if not stop or last:  # what ends anyway ends as it would have
            return
        self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        comm.synchronize()
        logger.warning(f"Stopped after iteration {self.trainer.iter}. Continue with --resume.")
        sys.exit(EXIT_REQUEUE)

    def after_train(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
