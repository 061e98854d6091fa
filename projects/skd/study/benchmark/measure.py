"""Time, memory and operations of a function, on CPU or GPU."""

import ctypes
import multiprocessing
import os
import platform
import statistics
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

Function = Callable[[], Any]


def synchronize(device: str) -> None:
    """Wait for what a GPU has been given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Function, device: str) -> float:
    """How long a call takes, with what it starts on a GPU."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def alternate(functions: Sequence[Function], repeats: int, device: str) -> List[Tuple[float, ...]]:
    """Seconds of each, in turns, so that what else the machine does falls on all."""
    return [tuple(seconds(f, device) for f in functions) for _ in range(repeats)]


def use_all_cores() -> None:
    torch.set_num_threads(os.cpu_count())


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of this package returns, run where nothing else was in memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def row(
    name: str, pairs: List[Tuple[float, float]], target: Optional[float] = None, **more: Any
) -> Dict[str, Any]:
    """A row of results.json: medians, their ratio, and the range of the pairs' ratios."""
    measured, reference = (statistics.median(side) for side in zip(*pairs))
    ratios = [a / b for a, b in pairs]
    return {
        "name": name,
        "measured": measured,
        "reference": reference,
        "ratio": measured / reference,
        "min": min(ratios),
        "max": max(ratios),
        "target": target,
        **more,
    }


def _resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(function: Function, device: str) -> int:
    """
    Bytes that a function holds at its worst moment on top of what was there before. On a CPU the
    process's resident memory, read every millisecond: run it in a process of its own.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier call has freed goes back first
    before = peak = _resident()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        function()
    finally:
        done.set()
        thread.join()
    return peak - before


@contextmanager
def no_tf32() -> Iterator[None]:
    """Convolutions in full fp32, and the loss's products, which follow them: for comparisons."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def count(measured: Function, reference: Function) -> Dict[str, int]:
    """Operations of both. They have run once after that, which is the warm-up."""
    return {"flops": flops(measured)[0], "flops_reference": flops(reference)[0]}


def flops(function: Function) -> Tuple[int, Any]:
    """
    Operations of all matrix products and convolutions of a call, backward included (two for a
    multiply-add), and what it returned. torch's counter, because fvcore's sees no backward.
    """
    mapping = {torch.ops.aten.baddbmm_: lambda c, a, b, out_shape=None, **_: bmm_flop(a, b)}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = function()
    return counter.get_total_flops(), result


class _Launches(TorchDispatchMode):
    """Counts operations that do something on the device: views and allocations do not."""

    ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
    VIEWS = ("detach", "_unsafe_view", "squeeze_", "unsqueeze_")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or name in self.ALLOCATIONS + self.VIEWS)
        return func(*args, **(kwargs or {}))


def launches(function: Function) -> int:
    """Operations that a call dispatches, backward included; on a GPU each is a kernel or a few."""
    with _Launches() as mode:
        function()
    return mode.count


def machine(device: str) -> Dict[str, Any]:
    """What the numbers were measured on, and how fast it multiplies and copies."""
    x = torch.randn(2048, 2048, device=device)
    y = torch.randn(2**25, device=device)
    gemm = min(seconds(lambda: x @ x, device) for _ in range(5))
    z = torch.empty_like(y)
    copy = min(seconds(lambda: z.copy_(y), device) for _ in range(5))
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "load": os.getloadavg()[0],
        "gemm_gflops": 2 * 2048**3 / gemm / 1e9,
        "copy_gbytes": 2 * y.numel() * 4 / copy / 1e9,
    }


def _commit() -> str:
    """Empty without git or a repository."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.split(":")[1].strip() for line in f if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
