#!/usr/bin/env python
"""
Is a distillation going to help, and if not, why? Tries the teacher on the student's own images, as
it is configured and otherwise, trains for a few iterations without writing anything, and says what
is wrong: wrong color order or normalization, a teacher that is untrained, of other data, or no
better than the student, weights that drown the detector or do nothing, a frozen student, misaligned
feature maps.

    python tools/doctor.py --config-file CONFIG --teacher CONFIG --teacher-weights FILE

Exits with 1 if it finds anything.
"""

import sys

from skd.study.common.command import (
    add_setup_arguments,
    command_parser,
    positive,
    run_command,
    whole,
)
from skd.study.doctor import run_doctor


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--config-file", required=True, help="the student's config")
    parser.add_argument("--teacher", default="", help="default: the one the config names")
    parser.add_argument("--teacher-weights", default="", help="default: the model zoo's")
    parser.add_argument(
        "--student-weights", default="", help="a student trained without a teacher, to compare with"
    )
    parser.add_argument("--iterations", type=positive, default=30, help="to train")
    parser.add_argument(
        "--images", type=whole, default=30, help="to try the teacher on; 0 for none"
    )
    add_setup_arguments(parser)
    parser.add_argument("opts", nargs="*", help="KEY VALUE ..., or key=value for a LazyConfig")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: run_doctor(argument_parser().parse_args())))
