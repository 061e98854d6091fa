#!/usr/bin/env python
"""
Compare distillation methods: detectors x methods x seeds, with the plain student and the teacher
beside them. All runs of a seed have the same first weights and order of images. Finished runs are
kept and interrupted ones go on, so the command can be repeated; a run that fails does not stop the
others.

    python tools/compare.py configs/shapes/study.yaml
    python tools/compare.py --config-file CONFIG --teacher CONFIG --teacher-weights FILE \\
        --methods all --seeds 1 2 3

Writes results.jsonl (a line per run), README.md (tables) and report.html into --output.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import sys
from typing import Any, Dict, List

from cells import BASELINE, Cell, Comparison, Study, load_study
from intervals import interval
from runs import ROOT, TASKS, markdown_table, print_table, run_all

from skd import register_coco
from skd.distillers import DISTILLER_REGISTRY


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", help="a study file; without it the flags say what")
    parser.add_argument("--config-file", nargs="+", default=[], help="plain configs of students")
    parser.add_argument("--teacher", help="config of the teacher, as for train_net.py")
    parser.add_argument("--teacher-weights", help="its checkpoint")
    parser.add_argument("--methods", nargs="+", default=["all"], help="names, or 'all'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, help="of each run (default: the config's)")
    parser.add_argument("--register-coco", nargs=3, action="append", default=[])
    parser.add_argument("--work", default=os.path.join("output", "compare"), help="runs' folders")
    parser.add_argument("--output", help="folder of the results (default: that of --work)")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: one a core)")
    parser.add_argument("--images", type=int, default=4, help="images in the report")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE ... for every run")
    return parser


def spec_of(args: argparse.Namespace) -> Dict[str, Any]:
    """A study from the flags."""
    if not (args.config_file and args.teacher and args.teacher_weights and args.iterations):
        raise ValueError(
            "Give a study file, or --config-file, --teacher, --teacher-weights and --iterations."
        )
    known = sorted(name for name, _ in DISTILLER_REGISTRY)
    names = known if args.methods == ["all"] else args.methods
    detectors = {
        os.path.splitext(os.path.basename(path))[0]: {"config": path} for path in args.config_file
    }
    return {
        "iterations": args.iterations,
        "seeds": args.seeds,
        "opts": args.opts,
        "teachers": {"teacher": {"config": args.teacher, "weights": args.teacher_weights}},
        "detectors": detectors,
        "methods": {n: {"MODEL.DISTILLER.NAME": n} for n in names if n != BASELINE},
        "compare": [
            {"name": name, "detector": name, "methods": [BASELINE, *names]} for name in detectors
        ],
    }


def table(comparison: Comparison) -> List[List[str]]:
    """Rows of method, runs, AP and their paired differences to the baseline of the same seed."""
    results: Dict[str, Dict[int, Dict[str, float]]] = {}
    teachers = {cell.teacher for cell in comparison.cells if cell.teacher}
    for cell in comparison.cells:
        name = cell.method
        if len(teachers) > 1 and cell.teacher:
            name += f", teacher {cell.teacher}"
        seeds = results.setdefault(name, {})
        row = cell.result()
        if row["status"] == "done":
            seeds[cell.seed] = row["ap"]
    plain = results.get(BASELINE, {})
    rows = []
    for name, seeds in results.items():
        row = [name, str(len(seeds))]
        for task in TASKS:
            key = f"{task}/AP"
            row.append(interval([ap[key] for ap in seeds.values() if key in ap]))
        for task in TASKS:
            key = f"{task}/AP"
            pairs = [(ap, plain[s]) for s, ap in seeds.items() if s in plain and key in ap]
            row.append(
                "" if name == BASELINE else interval([a[key] - b[key] for a, b in pairs], "+")
            )
        rows.append(row)
    return [rows[0], *sorted(rows[1:], key=_first_number, reverse=True)] if plain else rows


def _first_number(row: List[str]) -> float:
    return float(row[2].split()[0]) if row[2] != "-" else -1.0


HEADER = ["method", "seeds", *TASKS.values(), *(f"{t} - baseline's" for t in TASKS.values())]


def write_results(study: Study, output: str, command: str) -> None:
    """results.jsonl and README.md, from what is finished."""
    os.makedirs(output, exist_ok=True)
    rows = [cell.result() for cell in study.runs()]
    with open(os.path.join(output, "results.jsonl"), "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    done = [row for row in rows if row["status"] == "done"]
    lines = [
        "# Comparison of methods\n",
        f"{len(done)} of {len(rows)} runs are done. AP of the last iteration: mean and 95% "
        "confidence interval (Student's t) over the seeds, and the same of the differences to the "
        "baseline of the same seed.\n",
    ]
    teachers = [row for row in done if row["method"] == "teacher"]
    if teachers:
        cells = [
            [r["teacher"], *(f"{r['ap'].get(f'{t}/AP', 0):.1f}" for t in TASKS)] for r in teachers
        ]
        lines += ["## Teachers\n", markdown_table(["teacher", *TASKS.values()], cells)]
    for comparison in study.comparisons:
        lines += [f"## {comparison.name}\n", markdown_table(HEADER, table(comparison))]
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        lines.append("## Failed\n")
        lines += [f"- `{row['command']}`" for row in failed]
        lines.append("")
    lines.append(f"Made by\n\n```\n{command}\n```")
    with open(os.path.join(output, "README.md"), "w") as f:
        f.write("\n".join(lines) + "\n")


def main() -> int:
    args = arguments().parse_args()
    os.chdir(ROOT)
    for data_set in args.register_coco:
        register_coco(*data_set)
    flags = [part for data_set in args.register_coco for part in ("--register-coco", *data_set)]
    spec = load_study(args.study) if args.study else spec_of(args)
    study = Study(spec, args.work, flags)
    study.check()
    output = args.output or args.work
    given = [part for part in sys.argv[1:] if part != "--report-only"]
    command = shlex.join(["python", "tools/compare.py", *given])
    runs = study.runs()
    waiting = [cell for cell in runs if not cell.finished()]
    if not args.report_only and waiting:
        _same_commands(runs)
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already.", flush=True)
        run_all(
            waiting, args.jobs, resume=True, keep_going=True,
            on_end=lambda run: write_results(study, output, command),
        )  # fmt: skip
    write_results(study, output, command)
    for comparison in study.comparisons:
        print_table(comparison.name, HEADER, table(comparison))
    from report import write_report  # with matplotlib and the models

    write_report(study, output, command, args.images)
    print(f"{output}/report.html holds all of it.")
    failed: List[Cell] = [cell for cell in waiting if cell.error]
    for cell in failed:
        print(f"'{cell.name}' {cell.error}", file=sys.stderr)
    return 1 if failed else 0


def _same_commands(cells: List[Cell]) -> None:
    """Note each cell's command in its folder. Raises ValueError if another was run there."""
    for cell in cells:
        path, command = os.path.join(cell.folder, "command.json"), cell.command()[1:]
        if os.path.exists(path):
            with open(path) as f:
                before = json.load(f)
            if before != command:
                raise ValueError(
                    f"{cell.folder} holds another run than '{cell.name}' is now:\n"
                    f"  before: {' '.join(before)}\n  now:    {' '.join(command)}\n"
                    "Delete the folder, or choose another --work."
                )
        else:
            os.makedirs(cell.folder, exist_ok=True)
            with open(path, "w") as f:
                json.dump(command, f)


def mean_ap(cells: List[Cell], key: str) -> float:
    """Mean over the finished cells; nan if there is none that has it."""
    values = [c.result()["ap"].get(key) for c in cells if c.finished()]
    values = [v for v in values if v is not None]
    return statistics.mean(values) if values else math.nan


if __name__ == "__main__":
    sys.exit(main())
