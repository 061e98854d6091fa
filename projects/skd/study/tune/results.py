"""
What a search has found so far: results.jsonl, README.md, and the study that confirms it.

``tuning`` is a :class:`skd.study.tune.run.Tuning`.
"""

import os
import shlex
from typing import Any, Dict, List, Optional

import yaml

from ...config import is_lazy_file
from ...runtime.trust import TRUST_VARIABLE
from ..common.command import setup_flags
from ..common.metrics import main_metrics, title_of
from ..common.result_files import RESULTS, Row, write_lines, write_text
from ..common.runs import options_for
from ..common.tables import markdown_table, print_table
from ..compare.design import StudyRun
from ..compare.same import changed_between

CONFIRM = "confirm.yaml"


def write_tuning(tuning: Any, output: str, command: str) -> None:
    """
    Args:
        output: folder of results.jsonl, a line for each run, README.md, and confirm.yaml.
        command: that makes them.
    """
    os.makedirs(output, exist_ok=True)
    results = [run.result() for run in tuning.runs()]
    write_lines(os.path.join(output, RESULTS), results)
    best = _best(tuning)
    if best:
        study = yaml.safe_dump(_study(tuning, best), sort_keys=False)
        write_text(os.path.join(output, CONFIRM), study)
    page = _page(tuning, results, best, output, command)
    write_text(os.path.join(output, "README.md"), "\n".join(page) + "\n")


def print_results(tuning: Any) -> None:
    results = [run.result() for run in tuning.runs()]
    keys = _metrics(results)
    print_table("Best of each method", _header(keys), _rows(tuning, results, keys))
    print(*no_better(_best(tuning), tuning.baseline, tuning.args.metric), sep="\n", end="")


def no_better(best: Dict[str, Any], baseline: Any, metric: str = "") -> List[str]:
    """
    Args:
        best: each method's best trial, a :class:`skd.study.tune.run.TrialRun`; baseline: likewise.
        metric: as for :meth:`TrialRun.values`.

    Returns:
        One sentence on the methods whose best trial is no better than the baseline; or none, as
        before that has ended.
    """
    if not baseline.finished():
        return []
    own = baseline.values(metric)[-1][1]
    names = [name for name, run in best.items() if run.values(metric)[-1][1] <= own]
    if not names:
        return []
    return [
        f"No trial of {', '.join(names)} is better than the baseline: these settings are not worth "
        "taking. tools/doctor.py looks for what may be wrong with the teacher.\n"
    ]


def _page(
    tuning: Any,
    results: List[Row],
    best: Dict[str, StudyRun],
    output: str,
    command: str,
) -> List[str]:
    keys, rungs = _metrics(results), tuning.rungs
    lines = [
        "# Tuning\n",
        f"Trials of up to {tuning.iterations} iterations, seed {tuning.seed}, trained and "
        f"evaluated on {_datasets(tuning)}. One in {rungs.factor} goes on at iteration "
        f"{', '.join(map(str, rungs.steps())) or 'none'}. {tuning.clock():.0f} minutes so far.\n",
        *(f"{words}\n" for words in changed_between(tuning.runs())),
        "## Best of each method\n",
        markdown_table(_header(keys), _rows(tuning, results, keys)),
        *no_better(best, tuning.baseline, tuning.args.metric),
    ]
    if best:
        lines += [
            "The best of several trials is in part the luckiest. On the config's own test set and "
            "other seeds:\n",
            f"```\n{_confirmation(tuning, output)}\n```\n",
        ]
        lines += [f"{m}:\n\n```\n{_settings(run)}\n```\n" for m, run in best.items()]
    trials = [row for row in results if "trial" in row]
    header = ["method", "trial", "status", "iterations", *map(title_of, keys), "settings"]
    rows = [
        [row["method"], str(row["trial"]), row["status"], _last(row)]
        + [_number(row, key) for key in keys]
        + [_short(row["settings"])]
        for row in trials
    ]
    return lines + [
        "## All trials\n", markdown_table(header, rows), f"Made by\n\n```\n{command}\n```"
    ]  # fmt: skip


def _best(tuning: Any) -> Dict[str, StudyRun]:
    found = {method: tuning.search.best(method) for method in tuning.spaces}
    return {method: tuning.run_of(attempt) for method, attempt in found.items() if attempt}


def _metrics(results: List[Row]) -> List[str]:
    return main_metrics({key: 0 for row in results for key in row.get("ap", {})})


def _header(keys: List[str]) -> List[str]:
    titles = [title_of(key) for key in keys]
    differences = [f"{title} - baseline's" for title in titles]
    return ["method", "trials", "given up", "failed", *titles, *differences]


def _rows(tuning: Any, results: List[Row], keys: List[str]) -> List[List[str]]:
    """The baseline, then the methods, the best first."""
    first = next((row for row in results if "trial" not in row), {})
    rows = []
    for method, run in _best(tuning).items():
        best = run.result()
        differences = [_number(best, key, first.get("ap", {}).get(key)) for key in keys]
        tried = [row["status"] for row in results if row["method"] == method]
        counts = [len(tried), tried.count("pruned"), tried.count("failed")]
        rows.append((
            run.values(tuning.args.metric)[-1][1],
            [method, *map(str, counts), *(_number(best, key) for key in keys), *differences],
        ))  # fmt: skip
    own = ["baseline", "", "", "", *(_number(first, key) for key in keys), *([""] * len(keys))]
    return [own, *(row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True))]


def _number(row: Row, key: str, less: Optional[float] = None) -> str:
    value = row.get("ap", {}).get(key)
    if value is None:
        return "-"
    return f"{value:.1f}" if less is None else f"{value - less:+.1f}"


def _last(row: Row) -> str:
    return str(row["curve"][-1][0]) if row.get("curve") else "0"


def _short(settings: Dict[str, Any]) -> str:
    shown = {key.rsplit(".", 1)[1]: value for key, value in settings.items()}
    return ", ".join(f"{k} {v}" for k, v in shown.items() if k.upper() not in ("NAME", "ENABLED"))


def _settings(run: StudyRun) -> str:
    """A run's settings, as on train_net's command line."""
    parts = [str(part) for pair in run.settings.items() for part in pair]
    return shlex.join(options_for(run.config, parts))


def _datasets(tuning: Any) -> str:
    return f"{tuning.datasets[1]} and {tuning.datasets[3]}"


def _study(tuning: Any, best: Dict[str, StudyRun]) -> Dict[str, Any]:
    """The best settings against the baseline, as compare.py reads it."""
    args, name = tuning.args, tuning.baseline.detector
    detector: Dict[str, Any] = {"config": args.config_file}
    opts = list(tuning.opts)
    if len(set(map(is_lazy_file, _files(tuning)))) > 1:  # the teacher's form has other keys
        detector["opts"], opts = dict(zip(opts[::2], opts[1::2])), []
    return {
        "iterations": tuning.iterations,
        "seeds": [tuning.seed + k for k in (1, 2, 3)],
        "opts": opts,
        "teachers": {"teacher": {"config": args.teacher, "weights": args.teacher_weights or ""}},
        "detectors": {name: detector},
        "methods": {method: dict(run.settings) for method, run in best.items()},
        "compare": [{"name": name, "detector": name, "methods": ["baseline", *best]}],
    }


def _files(tuning: Any) -> List[str]:
    """The configs, without a teacher's that has no run of its own: a name in the model zoo."""
    return [path for path in (tuning.config, tuning.teacher) if os.path.exists(path)]


def _confirmation(tuning: Any, output: str) -> str:
    given = setup_flags(tuning.args, tuning.args.register_coco)
    command = shlex.join(["python", "tools/compare.py", os.path.join(output, CONFIRM), *given])
    # a study file is not the user's word that they may run
    lazy = os.pathsep.join(filter(is_lazy_file, _files(tuning)))
    return f"{TRUST_VARIABLE}={shlex.quote(lazy)} {command}" if lazy else command
