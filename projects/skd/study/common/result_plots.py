"""Plots of committed results, drawn with matplotlib."""

import statistics
from typing import Any, Dict, List, Tuple

from .statistics import half_width, interval

# What a row of a picture of gains shows: a name, and by metric the gain of each seed.
Gains = Tuple[str, Dict[str, List[float]]]


def save(figure: Any, path: str) -> None:
    """Write a picture that changes only with what it shows, and close it."""
    from matplotlib import pyplot as plt

    # no date and no version in the file: it changes only with the results
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_intervals(path: str, rows: List[Gains]) -> bool:
    """
    Gains with their 95% intervals, a row each, every seed a dot; a single seed is a ring.

    Args:
        rows: the first on top; those without any seed are left out.

    Returns:
        Whether there was one to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if any(row[1].values())]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(8.5, 0.9 + 0.55 * len(rows)), layout="constrained")
    metrics = list(dict.fromkeys(metric for _, gains in rows for metric in gains))
    for i, (_, gains) in enumerate(rows):
        axes.axhspan(i - 0.5, i + 0.5, color="0.96" if i % 2 else "white", lw=0, zorder=0)
        for k, metric in enumerate(metrics):
            if gains.get(metric):
                y = i + 0.5 * ((k + 0.5) / len(metrics) - 0.5)
                _draw_interval(axes, y, gains[metric], f"C{k}")
    for k, metric in enumerate(metrics):
        axes.plot([], [], "o", color=f"C{k}", label=metric)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("gain over the baseline of the same seed")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(metrics), frameon=False)
    save(figure, path)
    return True


def _draw_interval(axes: Any, y: float, gains: List[float], color: str) -> None:
    mean = statistics.mean(gains)
    if len(gains) > 1:
        axes.plot(gains, [y] * len(gains), "o", color=color, ms=3.5, mew=0, alpha=0.4)
        axes.errorbar(mean, y, xerr=half_width(gains), fmt="o", color=color, ms=6, capsize=3)
    else:
        axes.plot(mean, y, "o", color=color, ms=6, mfc="white")
    place = axes.get_yaxis_transform()
    axes.text(1.01, y, interval(gains, "+"), color=color, fontsize=8, va="center", transform=place)
