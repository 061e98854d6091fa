#!/usr/bin/env python
"""
Measure what distillation costs, each row as a ratio of two sides measured in turns in one run.
Writes OUTPUT/results.json and OUTPUT/table.md.

    make bench BENCH_ARGS="--only loss step"
    python tools/benchmark.py --device cuda --only teacher step
"""

import os
import sys

from skd.study.benchmark.run import PARTS, benchmark
from skd.study.common.command import command_parser, positive, run_command

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="to measure on")
    parser.add_argument(
        "--full", action="store_true", help="more repeats; on a CPU larger images in more rows, "
        "and a dataset of COCO's size",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=positive, help="measured pairs a row (default: 3, full: 10)"
    )
    parser.add_argument("--images", type=positive, default=2, help="in a batch")
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(800, 1344), metavar=("H", "W"), help="of images"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--output", default=os.path.join(ROOT, "output", "bench"), help="folder")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: benchmark(argument_parser().parse_args())))
