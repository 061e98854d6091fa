#!/usr/bin/env python
"""
All that needs a GPU, by one command within nine minutes: the tests marked "gpu" (mixed precision
with resume, NCCL in one process, TF32, the side stream) and the rows of tools/benchmark.py on CUDA
(the loss against its literal form, memory, the step, the teacher's options, compiling). Each part
has its own time, and one that fails does not stop the others. Writes OUTPUT/gpu.json (a dry run
OUTPUT/dry_run.json).

    python tools/gpu_day.py
    python tools/gpu_day.py --dry-run          # without a GPU: do the parts run at all?
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "projects"))  # a bare machine has not installed skd

from skd.study.common.command import command_parser, run_command  # noqa: E402
from skd.study.gpu_day import BENCH, TESTS, gpu_day  # noqa: E402


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--output", default=os.path.join("output", "gpu_day"), help="folder")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together")
    parser.add_argument(
        "--only", nargs="+", choices=(TESTS, *BENCH), default=[], metavar="PART",
        help=f"of {', '.join((TESTS, *BENCH))} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="on the CPU, as small as can be; tests are collected only",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: gpu_day(argument_parser().parse_args(), ROOT)))
