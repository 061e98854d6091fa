"""What a healthy training's log looks like, and a sick one's: for docs/reading_the_log.md."""

import os
from typing import Any, List, Optional, Sequence, Tuple

from .common.metrics import read_metrics
from .common.result_files import Row
from .common.result_plots import save

FOLDER = "log"  # below docs/results; of each run a folder with its metrics.json
SHARE, COSINE, ALIKE = "distill/share_", "distill/cosine_", "distill/cka_"
SICK = {
    "too_strong": "share 1000 times as large",
    "frozen": "the student's backbone frozen",
    "normalization": "the teacher's normalization wrong",
}


def draw_healthy(folder: str, path: str) -> bool:
    """
    Losses, shares, cosines, CKA and box AP of a run with its baseline's. Returns whether it could.
    """
    run, baseline = (_read(folder, name) for name in ("healthy", "baseline"))
    if not run or not baseline:
        return False
    figure, axes = _figure(1, 5)
    losses, shares, cosines, alike, ap = axes[0]
    for key, rows, name in (
        ("total_loss", run, "total_loss"),
        ("detector_loss", run, "detector_loss"),
        ("total_loss", baseline, "the baseline's total_loss"),
    ):
        losses.plot(*_series(rows, key), label=name)
    losses.set_yscale("log")
    _plot_terms(shares, run, SHARE, 100)
    shares.set_ylim(bottom=0)
    _plot_terms(cosines, run, COSINE)
    cosines.set_ylim(-0.25, 0.25)
    cosines.axhline(-0.2, color="0.5", ls=":")
    _plot_terms(alike, run, ALIKE)
    alike.set_ylim(0, 1)
    for rows, name in ((run, "with --teacher"), (baseline, "baseline")):
        ap.plot(*_series(rows, "bbox/AP"), "o-", ms=3, label=name)
    titles = ["losses", "shares, % of the detector's gradient", "cosines", "CKA", "box AP"]
    _finish(axes, titles)
    save(figure, path)
    return True


def draw_sick(folder: str, path: str) -> bool:
    """The losses and the shares of runs with a fault. Returns whether it could."""
    runs = {name: _read(folder, name) for name in ("short", *SICK)}
    if not all(runs.values()):
        return False
    figure, axes = _figure(2, len(SICK))
    for (name, title), above, below in zip(SICK.items(), *axes):
        for key, style in (("detector_loss", "-"), ("total_loss", "--")):
            above.plot(*_series(runs["short"], key), "C2", ls=style, label=f"healthy, {key}")
            above.plot(*_series(runs[name], key), "C3", ls=style, label=f"fault, {key}")
        above.set_title(title, fontsize=9)
        above.set_yscale("log")
        _plot_terms(below, runs[name], SHARE, 100)
        below.set_yscale("symlog", linthresh=1)
        below.set_ylim(0, 1e6)
    _finish(axes[:1], ["losses"] * len(SICK))
    _finish(axes[1:], ["shares, % of the detector's gradient"] * len(SICK))
    save(figure, path)
    return True


def _read(folder: str, name: str) -> List[Row]:
    return read_metrics(os.path.join(folder, FOLDER, name))


def _series(rows: List[Row], key: str, factor: float = 1) -> Tuple[List[int], List[float]]:
    found = [row for row in rows if row.get(key) is not None]
    return [row["iteration"] for row in found], [factor * row[key] for row in found]


def _plot_terms(axes: Any, rows: List[Row], prefix: str, factor: float = 1) -> None:
    styles = iter(("-", "--", ":", "-."))  # equal shares lie on each other
    for key in dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)):
        axes.plot(*_series(rows, key, factor), ls=next(styles, "-"), label=key.removeprefix(prefix))


def _figure(lines: int, columns: int) -> Tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (3.6 * columns, 2.8 * lines)
    return plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)


def _finish(axes: Any, labels: Sequence[Optional[str]]) -> None:
    for plot, label in zip(axes.flat, labels):
        plot.set_xlabel("iteration", fontsize=8)
        plot.set_ylabel(label, fontsize=8)
        plot.legend(fontsize=7)
