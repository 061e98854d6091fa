"""Two sides of a study in pairs: the runs of a seed that differ in one thing."""

from typing import Dict, List, Tuple

from tabulate import tabulate

from .metrics import main_metrics, title_of
from .result_files import BASELINE, Row, counted_ap
from .statistics import interval, verdict
from .tables import NOT_RUN

Ap = Dict[int, Dict[str, float]]  # by seed; {}: the run diverged, which is 0 of everything
# A row of a table: its name, the runs, what they are compared with, and how many seeds are planned.
Line = Tuple[str, Ap, Ap, int]


def ap_by_seed(rows: List[Row], method: str) -> Ap:
    """
    The AP of a method's runs that count.

    Raises:
        ValueError: there are two of a seed, as with two detectors or teachers.
    """
    found: Ap = {}
    for row in rows:
        ap = counted_ap(row) if row["method"] == method else None
        if ap is None:
            continue
        if row["seed"] in found:
            raise ValueError(f"There are two runs of {method} with seed {row['seed']}.")
        found[row["seed"]] = ap
    return found


def seeds_of(own: Ap, other: Ap) -> List[int]:
    """The seeds that both sides have."""
    return sorted(set(own) & set(other))


def metrics_of(own: Ap, other: Ap) -> List[str]:
    """The main metrics that a run of either side has."""
    return main_metrics({key: 0 for ap in (*own.values(), *other.values()) for key in ap})


def values(own: Ap, other: Ap, key: str) -> List[float]:
    """One side's values of a metric, for the seeds that both have."""
    return [own[seed].get(key) or 0.0 for seed in seeds_of(own, other)]


def gains(own: Ap, other: Ap, key: str) -> List[float]:
    """``own`` minus ``other``, seed by seed."""
    return [a - b for a, b in zip(values(own, other, key), values(other, own, key))]


def cells(own: Ap, other: Ap, key: str, planned: int) -> List[str]:
    """The cells of a table: the other side, this one, the gain, and its verdict."""
    difference = gains(own, other, key)
    return [
        interval(values(other, own, key)),
        interval(values(own, other, key)),
        f"**{interval(difference, '+')}**",
        verdict(difference, planned),
    ]


def line_of(
    name: str, rows: List[Row], method: str, others: List[Row], other: str = BASELINE
) -> Line:
    """Runs of a method among ``rows``, and those of another one among ``others``."""
    planned = len({row["seed"] for row in rows if row["method"] == method})
    return name, ap_by_seed(rows, method), ap_by_seed(others, other), planned


def paired_table(lines: List[Line], sides: Tuple[str, str] = ("baseline", "distilled")) -> str:
    """
    A row per line and metric; what has not run is named, too.

    Args:
        sides: what the second and the first side of all lines are called.
    """
    if not any(seeds_of(own, other) for _, own, other, _ in lines):
        return NOT_RUN
    rows = [row for line in lines for row in _rows(*line)]
    header = ["", "seeds", "metric", *sides, "gain", "verdict"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _rows(name: str, own: Ap, other: Ap, planned: int) -> List[List[str]]:
    seeds = seeds_of(own, other)
    found = metrics_of(own, other) if seeds else []
    rows = [[title_of(key), *cells(own, other, key, planned)] for key in found] or [["not run"]]
    heads = [[name, f"{len(seeds)} of {planned}"], *[["", ""]] * len(rows)]
    return [[*head, *row] for head, row in zip(heads, rows)]
