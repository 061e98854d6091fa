"""Which processors the runs of a study share."""

import os
from typing import List

import torch


def visible_gpus() -> List[str]:
    """What CUDA_VISIBLE_DEVICES can name, one at a time."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    if not torch.cuda.is_available():
        return []
    return [name.strip() for name in named.split(",") if name.strip()]


def cores() -> int:
    """Cores this process may use, which in a container or job may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """Runs at a time: one a GPU; without any, one a core."""
    return len(visible_gpus()) or cores()


def default_threads(jobs: int, runs: int) -> int:
    """
    Threads of each run. The order of a sum, and so a run's weights, depend on it: ``runs`` is how
    many there are in all, not how many are waiting.
    """
    return max(1, cores() // max(1, min(jobs, runs)))
