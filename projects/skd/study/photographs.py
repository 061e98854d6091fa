"""
Tables of docs/results/real/README.md: what other methods, single terms and another domain say. What
the flag alone gives is in gains.py, teachers are in teachers.py, corrupted images in corrupted.py.
"""

from typing import List, Sequence

from .common.metrics import title_of
from .common.paired import Line, gains, line_of, metrics_of, paired_table
from .common.result_files import BASELINE, Row, read_study
from .common.result_plots import draw_intervals
from .common.tables import NOT_RUN
from .gains import FLAG

# Below docs/results.
CARS, LONGER, SEARCHED = "real/carparts", "real/carparts_longer", "real/searched"
DOMAINS = "real/domains"
STUDENT = "Mask R-CNN"
METHODS = (FLAG, "SKD, published preset", "FGD", "MGD", "PKD", "CWD", "FitNets", "ReviewKD")
TERMS = ("AT", "AM", "AT and AM", "NL", FLAG)
PICTURE = "\n\n![Gains of the methods and of SKD's terms, with their intervals](methods.png)"


def methods_table(folder: str) -> str:
    """Methods balanced by gradient, those with searched settings, and twice the training."""
    table = paired_table(_methods(folder))
    return table if table == NOT_RUN else table + PICTURE


def terms_table(folder: str) -> str:
    """SKD's terms one by one."""
    return paired_table(_of_car_parts(read_study(folder, CARS), TERMS))


def domains_table(folder: str) -> str:
    """Nuclei, trained on one kind of image and tested on both: a row per test set and metric."""
    rows = [row for row in read_study(folder, DOMAINS) if row["method"] != "teacher"]
    by_detector = {row["detector"]: [] for row in rows}
    for row in rows:
        by_detector[row["detector"]].append(row)
    return paired_table([line_of(name, same, FLAG, same) for name, same in by_detector.items()])


def draw_methods(folder: str, path: str) -> bool:
    """Gains of methods and of single terms. Returns whether there was one to draw."""
    lines = [*_methods(folder), *_of_car_parts(read_study(folder, CARS), TERMS[:-1])]
    rows = [
        (name, {title_of(key): gains(own, other, key) for key in metrics_of(own, other)})
        for name, own, other, _ in lines
    ]
    return draw_intervals(path, rows)


def _methods(folder: str) -> List[Line]:
    cars, searched = read_study(folder, CARS), read_study(folder, SEARCHED)
    lines = _of_car_parts(cars, METHODS)
    for method in dict.fromkeys(row["method"] for row in searched):
        if method not in ("teacher", BASELINE):
            name = FLAG if method == "StructuredDistiller" else method
            lines.append(line_of(f"{name}, searched", searched, method, searched))
    longer = read_study(folder, LONGER)
    return [
        *lines,
        line_of("baseline, trained twice as long", longer, BASELINE, _of_student(cars)),
        line_of(f"{FLAG}, both trained twice as long", longer, FLAG, longer),
    ]


def _of_car_parts(rows: List[Row], methods: Sequence[str]) -> List[Line]:
    rows = _of_student(rows)
    return [line_of(name, rows, name, rows) for name in methods]


def _of_student(rows: List[Row]) -> List[Row]:
    """The rows of one student, with the first teacher."""
    rows = [row for row in rows if row["detector"] == STUDENT]
    first = next((row["teacher"] for row in rows if row["teacher"]), "")
    return [row for row in rows if row["teacher"] in ("", first)]
