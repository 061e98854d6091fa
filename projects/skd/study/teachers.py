"""What teachers of several strengths gave the same student, from the committed studies."""

import os
import statistics
from typing import Any, Dict, List

from tabulate import tabulate

from .common.result_files import BASELINE, finished
from .common.tables import NOT_RUN

AP = "bbox/AP"
# Below docs/results: the folder of a study, and what its images are called.
STUDIES = {"real/carparts": "car parts", "study": "shapes, from scratch"}


def teachers_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Markdown: per student and method that had several teachers a row for each, weakest first:
        its box AP, by how much that is above the baseline's, and the gain of the same seeds.
    """
    header = ["", "teacher", "its box AP", "above the baseline", "seeds", "student's gain"]
    rows = []
    for study, title in STUDIES.items():
        runs = finished(os.path.join(folder, study, "results.jsonl"))
        students = [row for row in runs if row["method"] not in ("teacher", BASELINE)]
        for detector, method in dict.fromkeys((r["detector"], r["method"]) for r in students):
            same = [r for r in students if (r["detector"], r["method"]) == (detector, method)]
            found = _rows(runs, detector, same)
            rows += [[f"{title}, {detector}, {method}", *row] for row in found]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def _rows(runs: List[Dict[str, Any]], detector: str, students: List[Dict]) -> List[List[str]]:
    strength = {row["teacher"]: row["ap"][AP] for row in runs if row["method"] == "teacher"}
    baseline = {
        row["seed"]: row["ap"][AP]
        for row in runs
        if row["method"] == BASELINE and row["detector"] == detector
    }
    by_teacher: Dict[str, Dict[int, float]] = {}
    for row in students:
        if row["teacher"] in strength and row["seed"] in baseline:
            by_teacher.setdefault(row["teacher"], {})[row["seed"]] = row["ap"][AP]
    seeds = set(baseline).intersection(*by_teacher.values())  # which all of them have
    if len(by_teacher) < 2 or not seeds:
        return []
    own = statistics.mean(baseline[seed] for seed in seeds)
    return [
        [
            name, f"{strength[name]:.1f}", f"{strength[name] - own:+.1f}", str(len(seeds)),
            f"{statistics.mean(ap[seed] - baseline[seed] for seed in seeds):+.1f}",
        ]
        for name, ap in sorted(by_teacher.items(), key=lambda item: strength[item[0]])
    ]  # fmt: skip
