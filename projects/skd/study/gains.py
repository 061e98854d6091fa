"""What the flag alone gives: tables and pictures from the results.jsonl of committed studies."""

import math
import os
import statistics
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from tabulate import tabulate

from .common.figures import save
from .common.metrics import METRICS
from .common.result_files import BASELINE, read_lines
from .common.statistics import half_width, interval
from .common.tables import NOT_RUN

Row = Dict[str, Any]
FLAG = "SKD"  # the method of runs with --teacher and nothing else
# Below docs/results: the folder of a study, and what its pairs are called.
STUDIES = {
    "real/carparts": "car parts",
    "real/labels": "car parts",
    "real/voc": "VOC photographs",
    "real/nuclei": "nuclei",
    "flag": "shapes, from scratch",
    "flag_pretrained": "shapes, pre-trained",
    "flag_pretrained_short": "shapes, pre-trained, half as long",
    # share 3 to the end of the training, the default until 26 November 2026
    "first_default/carparts": "first default: car parts",
    "first_default/flag_pretrained": "first default: shapes, pre-trained, half as long",
}


@dataclass
class Pairs:
    """A student on a dataset: its runs with and without a teacher, by seed."""

    title: str
    baseline: Dict[int, Row]
    distilled: Dict[int, Row]
    teacher: Dict[str, float]
    planned: int  # seeds, of which some may not have run yet

    def seeds(self) -> List[int]:
        return sorted(set(self.baseline) & set(self.distilled))

    def metrics(self) -> List[str]:
        """Those of :data:`METRICS` that the runs have."""
        both = [self.baseline[seed]["ap"] for seed in self.seeds()]
        return [key for key in METRICS if any(key in ap for ap in both)]

    def values(self, runs: Dict[int, Row], key: str) -> List[float]:
        return [runs[seed]["ap"].get(key) or 0.0 for seed in self.seeds()]

    def gains(self, key: str) -> List[float]:
        """Distilled minus baseline, seed by seed."""
        both = zip(self.values(self.distilled, key), self.values(self.baseline, key))
        return [a - b for a, b in both]

    def verdict(self, key: str) -> str:
        """By docs/results/real/PROTOCOL.md: whether the gain's 95% interval excludes 0."""
        gains = self.gains(key)
        if len(gains) < 2:
            return "one seed"
        word = "win" if statistics.mean(gains) > 0 else "loss"
        if abs(statistics.mean(gains)) <= half_width(gains):
            word = "tie"
        return word if len(gains) == self.planned else f"{word} so far"

    def last_third(self) -> float:
        """By how much the baseline's mean AP rises in the last third of its iterations."""
        done = [self.baseline[seed] for seed in self.seeds() if self.baseline[seed]["curve"]]
        return statistics.mean(map(_last_third, done)) if done else math.nan

    def curves(self, runs: Dict[int, Row]) -> List[List[Tuple[int, float]]]:
        return [runs[seed]["curve"] for seed in self.seeds() if runs[seed]["curve"]]


def read_pairs(folder: str) -> List[Pairs]:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Every student of :data:`STUDIES` of which a seed has run both ways.
    """
    found = []
    for study, title in STUDIES.items():
        rows = read_lines(os.path.join(folder, study, "results.jsonl"))
        teachers = {row["teacher"]: row.get("ap", {}) for row in rows if row["method"] == "teacher"}
        students = [row for row in rows if row["method"] in (BASELINE, FLAG)]
        for detector in dict.fromkeys(row["detector"] for row in students):
            pairs = _pairs(f"{title}, {detector}", teachers, students, detector)
            if pairs.seeds():
                found.append(pairs)
    return found


def _pairs(title: str, teachers: Dict[str, Any], rows: List[Row], detector: str) -> Pairs:
    """
    With the teacher of the study's first table, where a study has several. A run that failed has no
    AP, which counts as 0, as docs/results/real/PROTOCOL.md says.
    """
    rows = [row for row in rows if row["detector"] == detector]
    planned = len({row["seed"] for row in rows if row["method"] == FLAG})
    rows = [{"ap": {}, "curve": [], **row} for row in rows if row["status"] != "not run"]
    name = next((row["teacher"] for row in rows if row["method"] == FLAG), "")
    baseline = {row["seed"]: row for row in rows if row["method"] == BASELINE}
    distilled = {r["seed"]: r for r in rows if r["method"] == FLAG and r["teacher"] == name}
    return Pairs(title, baseline, distilled, teachers.get(name, {}), planned)


def gains_table(folder: str) -> str:
    """Per student and metric: teacher, baseline, distilled, gain, and what that is."""
    header = [
        "", "seeds", "metric", "teacher", "baseline", "with `--teacher`", "gain", "verdict",
        "baseline's rise in its last third",
    ]  # fmt: skip
    rows = []
    for pairs in read_pairs(folder):
        for i, key in enumerate(pairs.metrics()):
            first = (
                [pairs.title, f"{len(pairs.seeds())} of {pairs.planned}"] if i == 0 else ["", ""]
            )
            rows.append([*first, *_cells(pairs, key), _rise(pairs) if i == 0 else ""])
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def sizes_table(folder: str) -> str:
    """Gains in AP50, AP75 and by size."""
    parts = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    rows = []
    for pairs in read_pairs(folder):
        for key in pairs.metrics():
            kind = key[: -len("AP")]
            seen = {k: v for seed in pairs.seeds() for k, v in pairs.baseline[seed]["ap"].items()}
            cells = [
                interval(pairs.gains(kind + part), "+") if seen.get(kind + part) is not None else ""
                for part in parts
            ]
            rows.append([pairs.title, METRICS[key].split()[0], *cells])
    header = ["gain in", "", *parts]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def draw_gains(folder: str, path: str) -> bool:
    """Gains with their intervals, every seed a dot. Returns whether there was one to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = [
        (f"{pairs.title}: {METRICS[key]}", pairs.gains(key))
        for pairs in read_pairs(folder)
        for key in pairs.metrics()
    ]
    if not points:
        return False
    figure, axes = plt.subplots(figsize=(8, 1 + 0.4 * len(points)), layout="constrained")
    for y, (_, gains) in enumerate(reversed(points)):
        error = half_width(gains) if len(gains) > 1 else 0
        axes.plot(gains, [y] * len(gains), ".", color="0.6", zorder=1)
        axes.errorbar(statistics.mean(gains), y, xerr=error, fmt="o", color="C0", capsize=4)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_ylim(-0.6, len(points) - 0.4)
    axes.set_yticks(range(len(points)), [name for name, _ in reversed(points)])
    axes.set_xlabel("gain over the baseline of the same seed (AP): mean, 95% interval, seeds")
    save(figure, path)
    return True


def draw_curves(folder: str, path: str) -> bool:
    """AP over the iterations, mean of the seeds. Returns whether there was one to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = read_pairs(folder)
    if not found:
        return False
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4 * columns, 3 * lines), layout="constrained", squeeze=False
    )
    for plot in axes.flat[len(found) :]:
        plot.set_axis_off()
    for plot, pairs in zip(axes.flat, found):
        for name, runs in (("baseline", pairs.baseline), ("with --teacher", pairs.distilled)):
            curves = pairs.curves(runs)
            if curves:
                plot.plot(*_mean_curve(curves), label=name)
        if "bbox/AP" in pairs.teacher:
            plot.axhline(pairs.teacher["bbox/AP"], color="0.5", ls="--", label="teacher")
        plot.set_title(f"{pairs.title}, {len(pairs.seeds())} seeds", fontsize=9)
        plot.set_xlabel("iteration")
        plot.set_ylabel("box AP")
        plot.legend(fontsize=8)
    save(figure, path)
    return True


def _cells(pairs: Pairs, key: str) -> List[str]:
    teacher = pairs.teacher.get(key)
    return [
        METRICS[key],
        "" if teacher is None else f"{teacher:.1f}",
        interval(pairs.values(pairs.baseline, key)),
        interval(pairs.values(pairs.distilled, key)),
        f"**{interval(pairs.gains(key), '+')}**",
        pairs.verdict(key),
    ]


def _rise(pairs: Pairs) -> str:
    return f"{pairs.last_third():+.1f}"


def _last_third(run: Row) -> float:
    """From the last evaluation before the last third, or the first in it, to the end."""
    begin = run["iterations"] * 2 / 3
    before = [ap for iteration, ap in run["curve"] if iteration <= begin + 1]
    return run["curve"][-1][1] - (before[-1] if before else run["curve"][0][1])


def _mean_curve(curves: List[List[Tuple[int, float]]]) -> Tuple[List[int], List[float]]:
    length = min(map(len, curves))
    steps = [iteration for iteration, _ in curves[0][:length]]
    return steps, [statistics.mean(curve[i][1] for curve in curves) for i in range(length)]
