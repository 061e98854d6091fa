#!/usr/bin/env python
"""
Compare distillation methods: detectors x methods x seeds, with the baseline (the student without a
teacher) and the teacher beside them. All runs of a seed have the same first weights and order of
images, and every run has the same number of threads. Finished runs are kept and interrupted ones
go on, so the command can be repeated; a run that fails does not stop the others.

    python tools/compare.py configs/shapes/study.yaml
    python tools/compare.py --config-file CONFIG --teacher CONFIG --teacher-weights FILE \\
        --methods all --seeds 1 2 3

Writes results.jsonl (a line per run), README.md (tables) and report.html into --output.
"""

import os
import shlex
import sys

from skd.study.common.command import (
    add_machine_arguments,
    add_setup_arguments,
    command_parser,
    positive,
    run_command,
    whole,
)
from skd.study.compare.run import compare


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("study", nargs="?", help="a study file; without it the flags say what")
    parser.add_argument(
        "--config-file", nargs="+", default=[], help="students' configs, which do not distil"
    )
    parser.add_argument("--teacher", help="config of the teacher, as for train_net.py")
    parser.add_argument("--teacher-weights", help="its checkpoint (default: the model zoo's)")
    parser.add_argument("--methods", nargs="+", default=["all"], help="names, or 'all'")
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="a run for each (default: 1 2 3); of a study file run "
        "what these seeds need (default: all)",
    )  # fmt: skip
    parser.add_argument("--iterations", type=positive, help="of each run (default: the config's)")
    add_setup_arguments(parser)
    parser.add_argument("--work", default=os.path.join("output", "compare"), help="runs' folders")
    parser.add_argument("--output", help="folder of the results (default: that of --work)")
    add_machine_arguments(parser)
    parser.add_argument(
        "--earlier", nargs="+", default=[], metavar="FILE", help="results.jsonl files of earlier "
        "calls, as on another machine: the runs they have done are not made again (default: none)",
    )  # fmt: skip
    parser.add_argument("--images", type=whole, default=4, help="images in the report")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TABLE", help="run what these tables of the study "
        "need; reported is everything that is finished (default: all)",
    )  # fmt: skip
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is")
    parser.add_argument(
        "--opts", nargs="*", default=[], help="KEY VALUE ..., or key=value, for every run"
    )
    return parser


def main() -> int:
    given = [part for part in sys.argv[1:] if part != "--report-only"]
    command = shlex.join(["python", "tools/compare.py", *given])
    return compare(argument_parser().parse_args(), command)


if __name__ == "__main__":
    sys.exit(run_command(main))
