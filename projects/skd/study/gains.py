"""What the flag alone gives: tables and pictures from the results.jsonl of committed studies."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple

from tabulate import tabulate

from .common.metrics import METRICS
from .common.paired import (
    Ap,
    cells,
    gains,
    line_of,
    metrics_of,
    paired_table,
    seeds_of,
    values,
)
from .common.result_files import BASELINE, Row, counted_ap, read_study
from .common.result_plots import draw_intervals, save
from .common.statistics import interval
from .common.tables import NOT_RUN

FLAG = "SKD"  # the method of runs with --teacher and nothing else
# By docs/results/real/PROTOCOL.md, in AP: of a teacher above the baseline, and below which a
# baseline's rise in its last third must be.
TEACHER_LEAD, FLAT = 4.0, 1.0
# Studies of the present default: their folders below docs/results, and what their pairs are called.
STUDIES = {
    "real/carparts": "car parts",
    "real/carparts_longer": "car parts, twice as long",
    "real/retinanet": "car parts",
    "real/two_stage_teacher": "car parts, two-stage teacher",
    "real/labels": "car parts, teacher of all images",
    "real/voc": "VOC photographs",
    "real/nuclei": "nuclei",
    "flag": "shapes, from scratch",
    "flag_longer": "shapes, from scratch, a quarter longer",
    "flag_pretrained": "shapes, pre-trained",
    "flag_pretrained_short": "shapes, pre-trained, half as long",
}
# Share 3 to the end of the training, the default until 26 November 2026; and of one-stage students
# share 3 at all levels, until the 27th.
FIRST_DEFAULT = {
    "first_default/carparts": "car parts",
    "first_default/flag_pretrained": "shapes, pre-trained, half as long",
    "first_default/two_stage_teacher": "car parts, two-stage teacher and small anchors",
}


@dataclass
class Pairs:
    """A student on a dataset: its runs with and without a teacher, by seed."""

    title: str
    baseline: Dict[int, Row]
    distilled: Dict[int, Row]
    teacher: Dict[str, float]
    planned: int  # seeds, of which some may not have run yet

    def sides(self) -> Tuple[Ap, Ap]:
        """The AP of the distilled runs and of the baselines."""
        return _ap(self.distilled), _ap(self.baseline)

    def seeds(self) -> List[int]:
        return seeds_of(*self.sides())

    def metrics(self) -> List[str]:
        return metrics_of(*self.sides())

    def gains(self, key: str) -> List[float]:
        return gains(*self.sides(), key)

    def last_third(self) -> float:
        """The rise of the baseline's mean AP in the last third of its iterations."""
        done = [self.baseline[seed] for seed in self.seeds() if self.baseline[seed]["curve"]]
        return statistics.mean(map(_last_third, done)) if done else math.nan

    def curves(self, runs: Dict[int, Row]) -> List[List[Tuple[int, float]]]:
        return [runs[seed]["curve"] for seed in self.seeds() if runs[seed]["curve"]]


def read_pairs(folder: str, studies: Mapping[str, str] = STUDIES) -> List[Pairs]:
    """
    Args:
        folder: docs/results of a checkout.
        studies: their folders, and what their pairs are called.

    Returns:
        Every student of which a seed has run both ways.
    """
    found = []
    for study, title in studies.items():
        rows = read_study(folder, study)
        teachers = {row["teacher"]: row.get("ap", {}) for row in rows if row["method"] == "teacher"}
        students = [row for row in rows if row["method"] in (BASELINE, FLAG)]
        for detector in dict.fromkeys(row["detector"] for row in students):
            pairs = _pairs(f"{title}, {detector}", teachers, students, detector)
            if pairs.seeds():
                found.append(pairs)
    return found


def _pairs(title: str, teachers: Dict[str, Any], rows: List[Row], detector: str) -> Pairs:
    """
    A student's pairs, with the teacher of the study's first table where a study has several. A run
    that diverged has no AP, which counts as 0.
    """
    rows = [row for row in rows if row["detector"] == detector]
    planned = len({row["seed"] for row in rows if row["method"] == FLAG})
    name = next((row["teacher"] for row in rows if row["method"] == FLAG), "")
    rows = [{"ap": {}, "curve": [], **row} for row in rows if counted_ap(row) is not None]
    baseline = {row["seed"]: row for row in rows if row["method"] == BASELINE}
    distilled = {r["seed"]: r for r in rows if r["method"] == FLAG and r["teacher"] == name}
    return Pairs(title, baseline, distilled, teachers.get(name, {}), planned)


def gains_table(folder: str, studies: Mapping[str, str] = STUDIES) -> str:
    """Teacher, baseline, distilled, gain and verdict, for each student and metric."""
    header = [
        "", "seeds", "metric", "teacher", "baseline", "with `--teacher`", "gain", "verdict",
        "baseline's rise in its last third",
    ]  # fmt: skip
    rows = []
    for pairs in read_pairs(folder, studies):
        for i, key in enumerate(pairs.metrics()):
            first = (
                [pairs.title, f"{len(pairs.seeds())} of {pairs.planned}"] if i == 0 else ["", ""]
            )
            row = [
                METRICS[key],
                _teacher_cell(pairs, key),
                *cells(*pairs.sides(), key, pairs.planned),
            ]
            rows.append([*first, *row, _rise_cell(pairs) if i == 0 else ""])
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def _rise_cell(pairs: Pairs) -> str:
    rise = pairs.last_third()
    return f"{rise:+.1f}" + (", not flat" if rise >= FLAT else "")


def first_default_table(folder: str) -> str:
    """The same for the first default."""
    return gains_table(folder, FIRST_DEFAULT)


def to_the_end_table(folder: str) -> str:
    """The present default against the first one: when the teacher stops."""
    kept = {"detector": "Mask R-CNN", "teacher": "Lite2"}
    first, present = (
        [row for row in read_study(folder, study) if kept.items() <= row.items()]
        for study in ("first_default/carparts", "real/carparts")
    )
    line = line_of("car parts, Mask R-CNN", present, FLAG, first, FLAG)
    return paired_table([line], ("to the end", "to a third"))


def sizes_table(folder: str) -> str:
    """Gains in AP50, AP75 and by size."""
    parts = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    rows = []
    for pairs in read_pairs(folder):
        for key in pairs.metrics():
            kind = key.removesuffix("AP")
            seen = {k: v for seed in pairs.seeds() for k, v in pairs.baseline[seed]["ap"].items()}
            gained = [
                interval(pairs.gains(kind + part), "+") if seen.get(kind + part) is not None else ""
                for part in parts
            ]
            rows.append([pairs.title, METRICS[key].split()[0], *gained])
    header = ["gain in", "", *parts]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) if rows else NOT_RUN


def draw_gains(folder: str, path: str) -> bool:
    """Gains with their intervals. Returns whether there was one to draw."""
    rows = [
        (
            f"{pairs.title} ({_seeds(pairs)})",
            {METRICS[key]: pairs.gains(key) for key in pairs.metrics()},
        )
        for pairs in read_pairs(folder)
    ]
    return draw_intervals(path, rows)


def _seeds(pairs: Pairs) -> str:
    number = len(pairs.seeds())
    return "1 seed" if number == 1 else f"{number} seeds"


def draw_curves(folder: str, path: str) -> bool:
    """AP over the iterations: mean, and each seed. Returns whether there was one to draw."""
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
        both = {"baseline": pairs.baseline, "with --teacher": pairs.distilled}
        for color, (name, runs) in zip(("C0", "C1"), both.items()):
            curves = pairs.curves(runs)
            for curve in curves:
                plot.plot(*zip(*curve), color=color, lw=0.8, alpha=0.35)
            if curves:
                plot.plot(*_mean_curve(curves), color=color, lw=2, label=name)
        if "bbox/AP" in pairs.teacher:
            plot.axhline(pairs.teacher["bbox/AP"], color="0.5", ls="--", label="teacher")
        plot.set_title(f"{pairs.title} ({_seeds(pairs)})", fontsize=8)
        plot.set_xlabel("iteration")
        plot.set_ylabel("box AP")
        plot.legend(fontsize=8)
    save(figure, path)
    return True


def _ap(runs: Dict[int, Row]) -> Ap:
    return {seed: row["ap"] for seed, row in runs.items()}


def _teacher_cell(pairs: Pairs, key: str) -> str:
    """The teacher's AP, and its lead where that is less than the protocol asks for."""
    if key not in pairs.teacher:
        return ""
    lead = pairs.teacher[key] - statistics.mean(values(*reversed(pairs.sides()), key))
    weak = f" (only {lead:+.1f})" if lead < TEACHER_LEAD else ""
    return f"{pairs.teacher[key]:.1f}{weak}"


def _last_third(run: Row) -> float:
    """The rise of AP from the last evaluation before the last third, or the first in it."""
    begin = run["iterations"] * 2 / 3
    before = [ap for iteration, ap in run["curve"] if iteration <= begin + 1]
    return run["curve"][-1][1] - (before[-1] if before else run["curve"][0][1])


def _mean_curve(curves: List[List[Tuple[int, float]]]) -> Tuple[List[int], List[float]]:
    length = min(map(len, curves))
    steps = [iteration for iteration, _ in curves[0][:length]]
    return steps, [statistics.mean(curve[i][1] for curve in curves) for i in range(length)]
