#!/usr/bin/env python
"""
How fast are detectors in use? Student and teacher, say, on the same images, one at a time and in
turns: images a second, and how many times as fast as the last model named.

    python tools/speed.py --dataset coco_2017_val --model student STUDENT.yaml student.pth \\
        --model teacher TEACHER.yaml teacher.pth
"""

import os
import sys

from skd.study.common.command import command_parser, positive, run_command, whole
from skd.study.common.models import add_arguments
from skd.study.speed import speed


def argument_parser():
    parser = command_parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--dataset", required=True, help="a registered one")
    parser.add_argument("--images", type=positive, default=50, help="the first so many of it")
    parser.add_argument("--repeats", type=positive, default=5, help="rounds over the images")
    parser.add_argument(
        "--threads", type=whole, default=0, help="of PyTorch on a CPU (default: one a core)"
    )
    parser.add_argument(
        "--output", default=os.path.join("output", "speed"), help="folder of the results"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: speed(argument_parser().parse_args())))
