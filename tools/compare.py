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
import os
import shlex
import sys
from typing import Any, Dict, List

from skd import register_coco
from skd.config.lazy import allow
from skd.distillers import DISTILLER_REGISTRY
from skd.study.design import BASELINE, Cell, Study, load_study
from skd.study.runs import ROOT, print_table, run_all
from skd.study.tables import HEADER, table, write_results


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
    for path in (*args.config_file, args.teacher):
        allow(path)  # Python or not: the user has named it
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
    from skd.study.report import write_report  # with matplotlib and the models

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


if __name__ == "__main__":
    sys.exit(main())
