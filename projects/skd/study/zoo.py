"""All that was trained and committed, in one table: docs/model_zoo.md."""

import glob
import os
from typing import Any, Dict, List, Tuple

from tabulate import tabulate

from .common.metrics import TASKS
from .common.result_files import finished
from .common.statistics import interval
from .common.tables import NOT_RUN

LEFT_OUT = {"search"}  # trials of a search, far too short to say what a method gives
HEADER = ["study", "detector", "method", "teacher", "iterations", "seeds", *TASKS.values()]


def zoo_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Markdown: for each study the mean results of each detector with each method and teacher,
        but for those of ``LEFT_OUT``.
    """
    rows = []
    for path in sorted(glob.glob(os.path.join(folder, "**", "results.jsonl"), recursive=True)):
        study = os.path.relpath(os.path.dirname(path), folder)
        if study in LEFT_OUT:
            continue
        link = f"[{study}](results/{study}/README.md)"
        rows += [[link, *row] for row in _rows(_done(path))]
    return tabulate(rows, HEADER, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def _done(path: str) -> List[Dict[str, Any]]:
    """Trainings with results; other commands' files of that name have none."""
    return [row for row in finished(path) if row.get("ap")]


def _rows(runs: List[Dict[str, Any]]) -> List[List[str]]:
    groups: Dict[Tuple[str, ...], List[Dict[str, Any]]] = {}
    for run in runs:
        key = run["detector"], run["method"], run["teacher"], str(run["iterations"] or "-")
        groups.setdefault(key, []).append(run["ap"])
    return [
        [*key, str(len(results)), *(_mean(results, task) for task in TASKS)]
        for key, results in groups.items()
    ]


def _mean(results: List[Dict[str, Any]], task: str) -> str:
    values = [result.get(f"{task}/AP") for result in results]
    return interval([value for value in values if value is not None])
