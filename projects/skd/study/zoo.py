"""All that was trained and committed, in one table: docs/model_zoo.md."""

import glob
import os
import shlex
import statistics
from typing import Dict, List, Tuple

from tabulate import tabulate

from .common.metrics import TASKS
from .common.result_files import RESULTS, TAKEN_FROM, Row, finished
from .common.statistics import interval
from .common.tables import NOT_RUN

LEFT_OUT = {"search", "real/search"}  # trials of a search, far too short to say what a method gives
HEADER = [
    "study", "detector", "method", "teacher", "iterations", "seeds", *TASKS.values(),
    "s an iteration", "peak MB", "config",
]  # fmt: skip


def zoo_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Markdown: for each study the mean results of each detector with each method and teacher,
        but for those of ``LEFT_OUT``.
    """
    rows = []
    for path in sorted(glob.glob(os.path.join(folder, "**", RESULTS), recursive=True)):
        study = os.path.relpath(os.path.dirname(path), folder)
        if study in LEFT_OUT:
            continue
        link = f"[{study}](results/{study}/README.md)"
        rows += [[link, *row] for row in _rows(_done(path))]
    return tabulate(rows, HEADER, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def _done(path: str) -> List[Row]:
    """Trainings with results, each where it was made; files of other commands have none."""
    return [row for row in finished(path) if row.get("ap") and _made_here(row, path)]


def _made_here(row: Row, path: str) -> bool:
    """Whether a run is not of another study; those of an earlier call are taken from the file."""
    source = row.get(TAKEN_FROM)
    return not source or os.path.abspath(path).endswith(os.sep + source.lstrip(os.sep))


def _rows(runs: List[Row]) -> List[List[str]]:
    groups: Dict[Tuple[str, ...], List[Row]] = {}
    for run in runs:
        key = run["detector"], run["method"], run["teacher"], str(run["iterations"] or "-")
        groups.setdefault(key, []).append(run)
    return [
        [
            *key,
            str(len(runs)),
            *(_mean(runs, task) for task in TASKS),
            _median(runs, "seconds_per_iteration", ".2f"),
            _median(runs, "peak_memory_mb", ".0f"),
            _config(runs),
        ]
        for key, runs in groups.items()
    ]


def _mean(runs: List[Row], task: str) -> str:
    values = [run["ap"].get(f"{task}/AP") for run in runs]
    return interval([value for value in values if value is not None])


def _median(runs: List[Row], key: str, form: str) -> str:
    values = [run[key] for run in runs if run.get(key)]  # earlier runs did not keep it
    return f"{statistics.median(values):{form}}" if values else "-"


def _config(runs: List[Row]) -> str:
    """The config of a run's command; a link, where the file is in the tree."""
    words = shlex.split(runs[0].get("command", ""))
    path = words[words.index("--config-file") + 1] if "--config-file" in words else ""
    return f"[{os.path.basename(path)}](../{path})" if path.startswith("configs/") else path or "-"
