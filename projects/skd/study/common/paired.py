"""Two sides of a study in pairs: the runs of a seed that differ in one thing."""

from typing import Dict, List

from .metrics import main_metrics
from .result_files import Row, counted_ap
from .statistics import interval, verdict

Ap = Dict[int, Dict[str, float]]  # by seed; {}: the run diverged, which is 0 of everything


def ap_by_seed(rows: List[Row], method: str) -> Ap:
    """Of the runs of a method that count."""
    found = {row["seed"]: counted_ap(row) for row in rows if row["method"] == method}
    return {seed: ap for seed, ap in found.items() if ap is not None}


def seeds_of(own: Ap, other: Ap) -> List[int]:
    """Those that both sides have."""
    return sorted(set(own) & set(other))


def metrics_of(own: Ap, other: Ap) -> List[str]:
    """The main metrics that a run of either side has."""
    return main_metrics({key: 0 for ap in (*own.values(), *other.values()) for key in ap})


def values(own: Ap, other: Ap, key: str) -> List[float]:
    """Of one side, where there is the other."""
    return [own[seed].get(key, 0.0) for seed in seeds_of(own, other)]


def gains(own: Ap, other: Ap, key: str) -> List[float]:
    """``own`` minus ``other``, seed by seed."""
    return [a - b for a, b in zip(values(own, other, key), values(other, own, key))]


def cells(own: Ap, other: Ap, key: str, planned: int) -> List[str]:
    """Of a table: the other side, this one, the gain, and what that is."""
    difference = gains(own, other, key)
    return [
        interval(values(other, own, key)),
        interval(values(own, other, key)),
        f"**{interval(difference, '+')}**",
        verdict(difference, planned),
    ]
