"""Which processors the runs of a study share."""

import json
import os
from typing import List

import torch

from .result_files import write_text


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


def same_threads(work: str, given: int, default: int) -> int:
    """
    The number of threads of a study's runs, noted in its folder: with another number the same
    run would end with other weights.

    Raises:
        ValueError: ``given`` is not the number that other runs of the study had.
    """
    path = os.path.join(work, "threads.json")
    if os.path.exists(path):
        with open(path) as f:
            noted = int(json.load(f))
        if given not in (0, noted):
            raise ValueError(
                f"--threads is {given}, but runs in '{work}' had {noted}, and with other threads "
                "weights differ: leave it out, or choose another --work."
            )
        return noted
    os.makedirs(work, exist_ok=True)
    write_text(path, json.dumps(given or default))
    return given or default
