"""How much memory a training has held at its worst moment, and whether it ran out."""

from typing import Optional

import torch
from detectron2.engine import HookBase

MB = 2**20


def peak_resident() -> Optional[int]:
    """
    Bytes of this process at its worst moment; None where the system has no /proc. Of its own
    memory: ``ru_maxrss`` would start at that of the process which started it.
    """
    try:
        with open("/proc/self/status") as f:
            (line,) = [line for line in f if line.startswith("VmHWM:")]
    except (OSError, ValueError):
        return None
    return 1024 * int(line.split()[1])


def is_out_of_memory(error: Optional[BaseException]) -> bool:
    """Whether an error is PyTorch's, or Python's, for memory that is not there."""
    words = (
        "can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory",
        "ALLOC_FAILED",  # cuBLAS and cuDNN
    )  # fmt: skip
    kinds = (torch.cuda.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(w in str(error) for w in words)


class PeakMemory(HookBase):
    """
    Puts ``peak_memory_mb`` among the metrics: on a GPU the most that PyTorch has held there up to
    now, else the most that the process has, without its loader's workers. Register it before what
    writes them.
    """

    def __init__(self, device: torch.device, period: int):
        self._gpu = device if device.type == "cuda" else None
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period and done < self.trainer.max_iter:
            return
        peak = peak_resident() if self._gpu is None else torch.cuda.max_memory_allocated(self._gpu)
        if peak is not None:
            self.trainer.storage.put_scalar("peak_memory_mb", peak / MB, smoothing_hint=False)
