#!/usr/bin/env python
"""
How strong is each method, with its weights as they are, on a detector and data of your own? Prints
the norm of the gradient of the distillation loss over that of the detector's own losses, both at
the backbone's parameters, at the first weights and one batch. MODEL.DISTILLER.BALANCE is off for
this; where it is on, weights need no calibration, as --balanced shows.

    python tools/calibrate.py --config-file CONFIG --teacher CONFIG --teacher-weights FILE
"""

import sys

from skd.study.calibrate import calibrate
from skd.study.common.command import add_setup_arguments, command_parser, run_command


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument(
        "--config-file", required=True, help="a student's config, which does not distil"
    )
    parser.add_argument("--teacher", required=True, help="config of the teacher")
    parser.add_argument("--teacher-weights", default="", help="default: the model zoo's")
    parser.add_argument("--methods", nargs="+", default=["all"], help="names, or 'all'")
    parser.add_argument(
        "--balanced", action="store_true", help="measure each with balanced terms, too"
    )
    parser.add_argument("--output", default="", help="also write a .jsonl: a method a line")
    add_setup_arguments(parser)
    parser.add_argument("opts", nargs="*", help="KEY VALUE ..., or key=value for a LazyConfig")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: calibrate(argument_parser().parse_args())))
