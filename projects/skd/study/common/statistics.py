"""Mean and 95% confidence interval of a few seeds."""

import math
import statistics
from typing import List

from scipy import stats


def half_width(values: List[float]) -> float:
    """Half of the two-sided 95% interval of the mean (Student's t); nan for a single value."""
    if len(values) < 2:
        return math.nan
    t = stats.t.ppf(0.975, len(values) - 1)
    return float(t) * statistics.stdev(values) / math.sqrt(len(values))


def verdict(gains: List[float], planned: int) -> str:
    """
    Whether the 95% interval of paired gains excludes 0, as docs/results/real/PROTOCOL.md counts.

    Args:
        planned: seeds, of which some may not have run yet.
    """
    if len(gains) < 2:
        return "one seed" if gains else ""
    word = "win" if statistics.mean(gains) > 0 else "loss"
    if abs(statistics.mean(gains)) <= half_width(gains):
        word = "tie"
    return word if len(gains) == planned else f"{word} so far"


def interval(values: List[float], sign: str = "") -> str:
    """Mean and 95% interval as "12.3 ± 0.4"; ``sign`` "+" for differences."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.1f}"
