#!/usr/bin/env python
"""
Make a trained model's checkpoint small: its weights only, in half precision, without optimizer and
distiller. A tensor with values that half precision cannot hold stays as it is.

    python tools/slim_checkpoint.py output/teacher/model_final.pth configs/shapes/teacher.pth
"""

import sys

from skd.study.common.command import command_parser, run_command
from skd.study.slim_checkpoint import slim


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("source", help="a checkpoint of Detectron2's trainer")
    parser.add_argument("target", help="the file to write")
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    print(slim(args.source, args.target))


if __name__ == "__main__":
    sys.exit(run_command(main))
