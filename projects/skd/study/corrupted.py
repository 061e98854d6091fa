"""
What distillation gives on corrupted images, from the results of tools/robustness.py for models that
are called METHOD/SEED, such as baseline/1 and SKD/1.
"""

import statistics
from typing import Dict, List, Tuple

from tabulate import tabulate

from ..evaluation import mean_performance
from .common.paired import Ap, cells, gains, seeds_of
from .common.result_files import BASELINE, read_study
from .common.result_plots import Gains, draw_intervals
from .common.tables import NOT_RUN
from .gains import FLAG
from .robustness import TITLES

STUDY = "real/robustness"  # below docs/results
CLEAN = "clean"
PICTURE = "\n\n![Gain under each corruption, mean over its severities](robustness.png)"

Conditions = Dict[str, Dict[int, float]]  # AP by corruption (CLEAN for none) and severity


def robustness_table(folder: str) -> str:
    """AP on clean images, mPC and rPC (Michaelis et al. 2019), by task."""
    rows = []
    for task, title in TITLES.items():
        own, other = (_measures(folder, method, task) for method in (FLAG, BASELINE))
        seeds = len(seeds_of(own, other))
        for name in (CLEAN, "mPC", "rPC") if seeds else ():
            rows.append([f"{title}, {name}", str(seeds), *cells(own, other, name, seeds)])
    header = ["", "seeds", "baseline", "with `--teacher`", "gain", "verdict"]
    table = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    return table + PICTURE if rows else NOT_RUN


def draw_robustness(folder: str, path: str) -> bool:
    """The gain on clean images and under each corruption, most helped first."""
    rows: Dict[str, Dict[str, List[float]]] = {}
    for task, title in TITLES.items():
        own, other = (_measures(folder, method, task) for method in (FLAG, BASELINE))
        names = [name for ap in own.values() for name in ap if name not in ("mPC", "rPC")]
        for name in dict.fromkeys(names if seeds_of(own, other) else ()):
            rows.setdefault(name.replace("_", " "), {})[title] = gains(own, other, name)
    return draw_intervals(path, sorted(rows.items(), key=_order))


def _order(row: Gains) -> Tuple[bool, float]:
    name, by_task = row
    return name != CLEAN, -statistics.mean(next(iter(by_task.values())))


def _measures(folder: str, method: str, task: str) -> Ap:
    """
    AP on clean images, the mean under each corruption, mPC and rPC, by seed. Models that were not
    evaluated under all conditions that any was are left out.
    """
    models = _models(folder, task)
    wanted = {(name, s) for conditions in models.values() for name in conditions
              for s in conditions[name]}  # fmt: skip
    return {
        seed: _summary(conditions)
        for (own, seed), conditions in models.items()
        if own == method
        and CLEAN in conditions
        and len(wanted) == sum(map(len, conditions.values())) > 1
    }


def _models(folder: str, task: str) -> Dict[Tuple[str, int], Conditions]:
    """All evaluations, by method and seed; the last of those made twice."""
    models: Dict[Tuple[str, int], Conditions] = {}
    for row in read_study(folder, STUDY):
        method, _, seed = row["model"].rpartition("/")
        if seed.isdecimal() and task in row["ap"]:
            conditions = models.setdefault((method, int(seed)), {})
            by_severity = conditions.setdefault(row["corruption"] or CLEAN, {})
            by_severity[row["severity"]] = row["ap"][task]
    return models


def _summary(conditions: Conditions) -> Dict[str, float]:
    means = {name: statistics.mean(by.values()) for name, by in conditions.items()}
    corrupted = {name: by for name, by in conditions.items() if name != CLEAN}
    return {**means, **mean_performance(means[CLEAN], corrupted)}
