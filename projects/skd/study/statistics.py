"""Mean and 95% confidence interval of a few seeds."""

import math
import statistics
from typing import List

# Student's t for a two-sided 95% interval, by degrees of freedom
T95 = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]


def half_width(values: List[float]) -> float:
    """Half of the interval of the mean; nan for a single value."""
    if len(values) < 2:
        return math.nan
    t = T95[len(values) - 1] if len(values) <= len(T95) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: List[float], sign: str = "") -> str:
    """As "12.3 ± 0.4"; ``sign`` "+" for differences."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {half_width(values):.1f}"
