#!/usr/bin/env python
"""
How often is tools/doctor.py right? Plants faults in real distillations of the built-in dataset
(each for two detectors), adds sound ones, examines all, and writes results.jsonl and
table.md to --output. Goes on where it was interrupted. About ten minutes on one core.

A teacher of other data needs other data: --other, a dataset in COCO's format. With --other-teacher,
a light detector trained on it, photographs are examined too (docs/results/doctor has the command).
"""

import os
import shlex
import sys

from skd.study.common.command import command_parser, positive, run_command, whole
from skd.study.doctor.table import doctor_table


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--work", default=os.path.join("output", "doctor"), help="for what is kept")
    parser.add_argument(
        "--output", default=os.path.join("output", "doctor", "table"), help="folder"
    )
    parser.add_argument("--seed", type=whole, default=0, help="added to the runs' own")
    parser.add_argument(
        "--other", nargs=3, metavar=("NAME", "JSON", "IMAGES"), help="a dataset in COCO's format"
    )
    parser.add_argument(
        "--other-teacher",
        nargs=2,
        metavar=("CONFIG", "WEIGHTS"),
        help="trained on --other's images",
    )
    parser.add_argument("--split", default="skd_shapes_val", help="of shapes, to try teachers on")
    parser.add_argument("--iterations", type=positive, default=8, help="that each run trains")
    parser.add_argument("--images", type=positive, default=12, help="to try the teacher on")
    parser.add_argument("--threads", type=positive, default=1, help="of PyTorch")
    return parser


def main():
    command = shlex.join(["python", "tools/doctor_table.py", *sys.argv[1:]])
    return doctor_table(argument_parser().parse_args(), command)


if __name__ == "__main__":
    sys.exit(run_command(main))
