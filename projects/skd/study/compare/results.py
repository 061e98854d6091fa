"""Results of a study, from the runs that are finished."""

import math
import os
import statistics
from typing import Any, Dict, List, Sequence, Tuple

from ..common.metrics import METRICS, main_metrics, title_of
from ..common.result_files import (
    BASELINE,
    RESULTS,
    TAKEN_FROM,
    counted_ap,
    write_lines,
    write_text,
)
from ..common.statistics import interval
from ..common.tables import markdown_table
from .design import Comparison, Study, StudyRun
from .earlier import commits_of, two_teachers
from .same import changed_between


def groups(comparison: Comparison) -> Dict[str, List[StudyRun]]:
    """Runs by method, with the teacher where there are several."""
    several = len({run.teacher for run in comparison.runs if run.teacher}) > 1
    out: Dict[str, List[StudyRun]] = {}
    for run in comparison.runs:
        name = f"{run.method}, teacher {run.teacher}" if several and run.teacher else run.method
        out.setdefault(name, []).append(run)
    return out


def metrics_of(runs: Sequence[StudyRun]) -> List[str]:
    """The main metrics that any of the runs has; box AP if none is finished."""
    rows = [run.result() for run in runs]
    return main_metrics({key: 0 for row in rows for key in row.get("ap", {})}) or [*METRICS][:1]


def header(comparison: Comparison) -> List[str]:
    """Of :func:`table`."""
    titles = [title_of(key) for key in metrics_of(comparison.runs)]
    return ["method", "seeds", *titles, *(f"{title} - baseline's" for title in titles)]


def table(comparison: Comparison) -> List[List[str]]:
    """
    Rows of method, runs, metrics and their paired differences to the baseline of a seed. A run that
    diverged has 0 of everything.
    """
    metrics = metrics_of(comparison.runs)
    results = {name: _counted(runs) for name, runs in groups(comparison).items()}
    baseline = results.get(BASELINE, {})
    rows = []
    for name, seeds in results.items():
        diverged = sum(not ap for ap in seeds.values())
        row = [name, f"{len(seeds)}" + (f", {diverged} diverged" if diverged else "")]
        for key in metrics:
            row.append(interval(list(_values(seeds, key).values())))
        for key in metrics:
            own, other = _values(seeds, key), _values(baseline, key)
            gains = [value - other[seed] for seed, value in own.items() if seed in other]
            row.append("" if name == BASELINE else interval(gains, "+"))
        rows.append(row)
    if not baseline:
        return rows
    first = [row for row in rows if row[0] == BASELINE]
    others = [row for row in rows if row[0] != BASELINE]
    return first + sorted(others, key=_first_number, reverse=True)


def _counted(runs: Sequence[StudyRun]) -> Dict[int, Dict[str, Any]]:
    """The AP of the runs that count, by seed; see :func:`counted_ap`."""
    found = {run.seed: counted_ap(run.result()) for run in runs}
    return {seed: ap for seed, ap in found.items() if ap is not None}


def _values(seeds: Dict[int, Dict[str, Any]], key: str) -> Dict[int, float]:
    return {seed: ap.get(key, 0.0) for seed, ap in seeds.items() if key in ap or not ap}


def _first_number(row: List[str]) -> float:
    return float(row[2].split()[0]) if row[2] != "-" else -1.0


TERMS_HEADER = [
    "method", "detector's losses", "norm of their gradient", "term", "share, mean", "share, last",
    "weight", "norm of its gradient", "cosine, mean",
]  # fmt: skip


def terms_table(comparison: Comparison) -> List[List[str]]:
    """
    A row for each term of each method: means over the seeds. Shares are percentages; weights and
    norms are those of a balance.
    """
    rows = []
    for name, seen in _distillations(comparison).items():
        own = [_mean(seen, key, ".3g") for key in ("detector_loss", "norm_detector")]
        for term in dict.fromkeys(term for run in seen for term in run["terms"]):
            values = [run["terms"][term] for run in seen if term in run["terms"]]
            shares = [_mean(values, key, ".1%") for key in ("share", "last_share")]
            others = [_mean(values, key, ".3g") for key in ("weight", "norm", "cosine")]
            rows.append([name, *own, term, *shares, *others])
    return rows


ALIKE_TITLE = (
    "How alike the student's and the teacher's maps were (CKA), first and last while there was a "
    "teacher, means over the seeds"
)


def alike_table(comparison: Comparison) -> Tuple[List[str], List[List[str]]]:
    """Header, and a row for each method that was measured; a column for each level."""
    found = {name: _levels(seen) for name, seen in _distillations(comparison).items()}
    found = {name: levels for name, levels in found.items() if levels}
    names = list(dict.fromkeys(name for levels in found.values() for name in levels))
    rows = [[name, *(levels.get(n, "-") for n in names)] for name, levels in found.items()]
    return ["method", *names], rows


def _levels(seen: Sequence[Dict[str, Any]]) -> Dict[str, str]:
    found: Dict[str, List[Dict[str, float]]] = {}
    for run in seen:
        for name, alike in run.get("levels", {}).items():
            found.setdefault(name, []).append(alike)
    return {
        name: " to ".join(_mean(alike, key, ".2f") for key in ("first", "last"))
        for name, alike in found.items()
    }


def _distillations(comparison: Comparison) -> Dict[str, List[Dict[str, Any]]]:
    """What distillation did in each run of each method; see :func:`distillation`."""
    return {
        name: [run.result()["distillation"] for run in runs if "distillation" in run.result()]
        for name, runs in groups(comparison).items()
    }


def _mean(rows: Sequence[Dict[str, Any]], key: str, form: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{statistics.mean(values):{form}}" if values else "-"


def write_study(study: Study, output: str, command: str) -> None:
    """results.jsonl and README.md, from what is finished."""
    os.makedirs(output, exist_ok=True)
    results = [run.result() for run in study.runs()]
    write_lines(os.path.join(output, RESULTS), results)
    done = [row for row in results if row["status"] == "done"]
    lines = [
        "# Comparison of methods\n",
        f"{len(done)} of {len(results)} runs are done{_taken(done)}. "
        "Metrics of the last iteration: mean and 95% confidence interval (Student's t) over the "
        "seeds, and the same of the differences to the baseline of the same seed. A run that "
        "diverged counts as 0.\n",
        *(f"{words}\n" for words in two_teachers(list(study.teachers.values()))),
        *(f"{words}\n" for words in changed_between(study.runs())),
    ]
    teachers = [row for row in done if row["method"] == "teacher"]
    if teachers:
        keys = main_metrics({key: 0 for row in teachers for key in row["ap"]})
        rows = [[r["teacher"], *(_one(r["ap"].get(key)) for key in keys)] for r in teachers]
        lines += ["## Teachers\n", markdown_table(["teacher", *map(title_of, keys)], rows)]
    for comparison in study.comparisons:
        lines += [
            f"## {_line(comparison.name)}\n",
            markdown_table(header(comparison), table(comparison)),
        ]
        terms = terms_table(comparison)
        if terms:
            lines += [
                "What the terms did while there was a teacher, in shares of the detector's "
                "gradient at the maps, means over the seeds; losses, norms and weights are its "
                "last ones:\n",
                markdown_table(TERMS_HEADER, terms),
            ]
        levels, alike = alike_table(comparison)
        if alike:
            lines += [f"{ALIKE_TITLE}:\n", markdown_table(levels, alike)]
    failed = [row for row in results if row["status"] == "failed"]
    if failed:
        lines.append("## Failed\n")
        lines += [f"- `{row['command']}`" for row in failed]
        lines.append("")
    lines.append(f"Made by\n\n```\n{command}\n```")
    write_text(os.path.join(output, "README.md"), "\n".join(lines) + "\n")


def _taken(rows: Sequence[Dict[str, Any]]) -> str:
    taken = [row for row in rows if TAKEN_FROM in row]
    files = ", ".join(f"`{path}`" for path in dict.fromkeys(row[TAKEN_FROM] for row in taken))
    at = ", ".join(commits_of(taken))
    return f", {len(taken)} of them taken from {files} (commits: {at})" if taken else ""


def mean_ap(runs: Sequence[StudyRun], key: str) -> float:
    """Mean over the finished runs; nan if there is none that has it."""
    values = [run.result()["ap"].get(key) for run in runs if run.done()]
    values = [v for v in values if v is not None]
    return statistics.mean(values) if values else math.nan


def _line(name: str) -> str:
    return " ".join(name.split())


def _one(value) -> str:
    return "-" if value is None else f"{value:.1f}"
