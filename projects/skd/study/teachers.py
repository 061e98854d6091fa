"""What teachers of several strengths gave the same student, from the committed studies."""

import statistics
from typing import Dict, List

from tabulate import tabulate

from .common.paired import Ap, ap_by_seed, gains, line_of, paired_table, values
from .common.result_files import BASELINE, Row, counted_ap, read_study
from .common.statistics import interval
from .common.tables import NOT_RUN

AP = "bbox/AP"
OTHER_DATA = "real/other_data"  # below docs/results
# Below docs/results: the folder of a study, and what its images are called.
TEACHER_STUDIES = {"real/carparts": "car parts", "study": "shapes, from scratch"}


def teachers_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Markdown: per student and method that had several teachers a row for each, weakest first:
        its box AP, by how much that is above the baseline's, and the gain of the same seeds with
        its 95% interval.
    """
    header = ["", "teacher", "its box AP", "above the baseline", "seeds", "student's gain"]
    rows = []
    for study, title in TEACHER_STUDIES.items():
        runs = read_study(folder, study)
        students = [row for row in runs if row["method"] not in ("teacher", BASELINE)]
        for detector, method in dict.fromkeys((r["detector"], r["method"]) for r in students):
            same = [r for r in students if (r["detector"], r["method"]) == (detector, method)]
            found = _rows(runs, detector, same)
            rows += [[f"{title}, {detector}, {method}", *row] for row in found]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def _rows(runs: List[Row], detector: str, students: List[Row]) -> List[List[str]]:
    teachers = {row["teacher"]: counted_ap(row) for row in runs if row["method"] == "teacher"}
    strength = {name: ap[AP] for name, ap in teachers.items() if ap}
    baseline = ap_by_seed([row for row in runs if row["detector"] == detector], BASELINE)
    by_teacher: Dict[str, Ap] = {}
    for row in students:
        if row["teacher"] in strength:
            by_teacher.setdefault(row["teacher"], {}).update(ap_by_seed([row], row["method"]))
    by_teacher = {name: ap for name, ap in by_teacher.items() if ap}
    seeds = set(baseline).intersection(*by_teacher.values())  # which all of them have
    if len(by_teacher) < 2 or not seeds:
        return []
    same = {seed: baseline[seed] for seed in seeds}
    return [
        [
            name, f"{strength[name]:.1f}", f"{strength[name] - _mean(same):+.1f}", str(len(seeds)),
            interval(gains(ap, same, AP), "+"),
        ]
        for name, ap in sorted(by_teacher.items(), key=lambda item: strength[item[0]])
    ]  # fmt: skip


def other_data_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Markdown: what a teacher of the student's data and one of other data gave the same students.
    """
    rows = read_study(folder, OTHER_DATA)
    students = [row for row in rows if row["method"] not in ("teacher", BASELINE)]
    lines = [
        line_of(f"teacher {name}", [r for r in students if r["teacher"] == name], method, rows)
        for name, method in dict.fromkeys((r["teacher"], r["method"]) for r in students)
    ]
    return paired_table(lines)


def _mean(runs: Ap) -> float:
    return statistics.mean(values(runs, runs, AP))
