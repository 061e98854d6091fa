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


def interval(values: List[float], sign: str = "") -> str:
    """As "12.3 ± 0.4"; ``sign`` "+" for differences."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.1f}"
