"""
Tables of docs/results/real/README.md: what other methods, single terms and another domain say. What
the flag alone gives is in gains.py, teachers are in teachers.py, corrupted images in corrupted.py.
"""

import os
from typing import List, Sequence, Tuple

from tabulate import tabulate

from .common.figures import draw_intervals
from .common.metrics import title_of
from .common.paired import Ap, ap_by_seed, cells, gains, metrics_of, seeds_of
from .common.result_files import BASELINE, Row, read_lines
from .common.tables import NOT_RUN
from .gains import FLAG

# Below docs/results.
CARS, LONGER, SEARCHED = "real/carparts", "real/carparts_longer", "real/searched"
DOMAINS = "real/domains"
STUDENT = "Mask R-CNN"
METHODS = (FLAG, "SKD, published preset", "FGD", "MGD", "PKD", "CWD", "FitNets", "ReviewKD")
TERMS = ("AT", "AM", "AT and AM", "NL", FLAG)
PICTURE = "\n\n![Gains of the methods and of SKD's terms, with their intervals](methods.png)"

# A row of a table: its name, the runs, their baselines, and how many seeds are planned.
Line = Tuple[str, Ap, Ap, int]


def methods_table(folder: str) -> str:
    """Methods balanced by gradient, then those with searched settings, and a longer baseline."""
    table = _table(_methods(folder))
    return table if table == NOT_RUN else table + PICTURE


def terms_table(folder: str) -> str:
    """SKD's terms one by one."""
    return _table(_of_car_parts(_read(folder, CARS), TERMS))


def domains_table(folder: str) -> str:
    """Nuclei, trained on one kind of image and tested on both: a row per test set and metric."""
    rows = [row for row in _read(folder, DOMAINS) if row["method"] != "teacher"]
    by_detector = {row["detector"]: [] for row in rows}
    for row in rows:
        by_detector[row["detector"]].append(row)
    return _table([_line(name, same, FLAG, same) for name, same in by_detector.items()])


def draw_methods(folder: str, path: str) -> bool:
    """Gains of methods and of single terms. Returns whether there was one to draw."""
    lines = [*_methods(folder), *_of_car_parts(_read(folder, CARS), TERMS[:-1])]
    rows = [
        (name, {title_of(key): gains(own, other, key) for key in metrics_of(own, other)})
        for name, own, other, _ in lines
    ]
    return draw_intervals(path, rows)


def _methods(folder: str) -> List[Line]:
    cars, searched = _read(folder, CARS), _read(folder, SEARCHED)
    lines = _of_car_parts(cars, METHODS)
    for method in dict.fromkeys(row["method"] for row in searched):
        if method not in ("teacher", BASELINE):
            name = FLAG if method == "StructuredDistiller" else method
            lines.append(_line(f"{name}, searched", searched, method, searched))
    longer = "baseline, trained twice as long"
    return [*lines, _line(longer, _read(folder, LONGER), BASELINE, _of_student(cars))]


def _of_car_parts(rows: List[Row], methods: Sequence[str]) -> List[Line]:
    rows = _of_student(rows)
    return [_line(name, rows, name, rows) for name in methods]


def _line(name: str, rows: List[Row], method: str, baselines: List[Row]) -> Line:
    planned = len({row["seed"] for row in rows if row["method"] == method})
    return name, ap_by_seed(rows, method), ap_by_seed(baselines, BASELINE), planned


def _read(folder: str, study: str) -> List[Row]:
    return read_lines(os.path.join(folder, study, "results.jsonl"))


def _of_student(rows: List[Row]) -> List[Row]:
    """Those of one student, with the first teacher."""
    rows = [row for row in rows if row["detector"] == STUDENT]
    first = next((row["teacher"] for row in rows if row["teacher"]), "")
    return [row for row in rows if row["teacher"] in ("", first)]


def _table(lines: List[Line]) -> str:
    """A row per method and metric; what has not run is named, too."""
    if not any(seeds_of(own, other) for _, own, other, _ in lines):
        return NOT_RUN
    rows = [row for line in lines for row in _rows(*line)]
    header = ["", "seeds", "metric", "baseline", "distilled", "gain", "verdict"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _rows(name: str, own: Ap, other: Ap, planned: int) -> List[List[str]]:
    seeds = seeds_of(own, other)
    found = metrics_of(own, other) if seeds else []
    rows = [[title_of(key), *cells(own, other, key, planned)] for key in found] or [["not run"]]
    heads = [[name, f"{len(seeds)} of {planned}"], *[["", ""]] * len(rows)]
    return [[*head, *row] for head, row in zip(heads, rows)]
