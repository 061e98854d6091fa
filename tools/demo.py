#!/usr/bin/env python
"""
Distil a small Mask R-CNN from a larger one on the built-in dataset, next to the same student
without a teacher (the baseline), and show with numbers and pictures what it changed.
"""

import os
import sys

from skd.study.common.command import command_parser, positive, run_command
from skd.study.demo import ITERATIONS, demo


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--output", default=os.path.join("output", "demo"), help="where it goes")
    parser.add_argument("--iterations", type=positive, default=ITERATIONS, help="of each student")
    parser.add_argument("--seed", type=int, default=1, help="of both students")
    parser.add_argument("opts", nargs="*", help="further config options, KEY VALUE ...")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: demo(argument_parser().parse_args())))
