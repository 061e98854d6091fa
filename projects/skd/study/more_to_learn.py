"""
Tables of docs/unlabelled.md and docs/heads.md: what images without labels and the teacher's heads
give, from the results of the study files of these names.
"""

import statistics
from typing import List

from .common.metrics import title_of
from .common.paired import Line, ap_by_seed, gains, line_of, metrics_of, paired_table
from .common.result_files import BASELINE, Row, read_study
from .common.tables import NOT_RUN
from .gains import FLAG

UNLABELLED = f"{FLAG}, unlabelled"
FEW = "10% of the images"  # the detector that has labels of these only
# Below docs/results: the folder of a study, and what its data are called.
UNLABELLED_STUDIES = {"unlabelled/carparts": "car parts", "unlabelled/shapes": "shapes"}
HEADS_STUDIES = {
    "heads/carparts": "car parts",
    "heads/shapes": "shapes",
    "heads/dense": "car parts, RetinaNet",
}


def unlabelled_table(folder: str) -> str:
    """Gains over the baseline of few labels; what they recover of the gap to all labels."""
    lines: List[Line] = []
    recovered: List[str] = []
    for study, data in UNLABELLED_STUDIES.items():
        rows = read_study(folder, study)
        lines += _of_labels(rows, data)
        recovered += [f"{data}, {words}" for words in _recovered(rows)]
    table = paired_table(lines, ("baseline, 10% of the labels", "this"))
    words = "; ".join(recovered) or "not known yet"
    if table == NOT_RUN:
        return table
    return (
        f"{table}\n\nRecovered of the gap to all labels, with the teacher of all labels: {words}."
    )


def heads_table(folder: str) -> str:
    """Gains of the teacher's heads over the features alone."""
    lines: List[Line] = []
    for study, data in HEADS_STUDIES.items():
        rows = [row for row in read_study(folder, study) if row["method"] != "teacher"]
        methods = dict.fromkeys(row["method"] for row in rows)
        more = [method for method in methods if method not in (BASELINE, FLAG)]
        lines += [line_of(f"{data}: {method}", rows, method, rows, FLAG) for method in more]
    return paired_table(lines, ("features alone", "and heads"))


def _of_labels(rows: List[Row], data: str) -> List[Line]:
    few = [row for row in rows if row["detector"] == FEW]
    lines = []
    for teacher in dict.fromkeys(row["teacher"] for row in few if row["teacher"]):
        own = _of_teacher(few, teacher)
        for method in (FLAG, UNLABELLED):
            lines.append(line_of(f"{data}: {method}, teacher {teacher}", own, method, own))
    every = line_of(f"{data}: baseline, all labels", _of_all(rows), BASELINE, few)
    return [*lines, every] if rows else []


def _of_teacher(rows: List[Row], teacher: str) -> List[Row]:
    """Runs with it, and those without any."""
    return [row for row in rows if row["teacher"] in ("", teacher)]


def _of_all(rows: List[Row]) -> List[Row]:
    return [row for row in rows if row["detector"] not in (FEW, "teacher")]


def _recovered(rows: List[Row]) -> List[str]:
    """The part of the gap between few labels and all, by the means, for each metric."""
    few = [row for row in rows if row["detector"] == FEW]
    first = next((row["teacher"] for row in few if row["teacher"]), "")
    baseline = ap_by_seed(few, BASELINE)
    sides = ap_by_seed(_of_teacher(few, first), UNLABELLED), ap_by_seed(_of_all(rows), BASELINE)
    words = []
    for key in metrics_of(*sides):
        found, gap = (gains(side, baseline, key) for side in sides)
        if found and gap and statistics.mean(gap) > 0:
            part = statistics.mean(found) / statistics.mean(gap)
            words.append(f"{title_of(key)} {part:.0%}")
    return words
