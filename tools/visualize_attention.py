#!/usr/bin/env python
"""
Look at what models look at. For an image or a folder of images, and for each model (such as the
baseline, the distilled student, and the teacher): spatial attention at every level over the
image, channel attention as bars, and how much a given or clicked pixel draws from all others in the
non-local sense.

    python tools/visualize_attention.py --input image.jpg --pixel 320 200 \\
        --model baseline CONFIG WEIGHTS --model distilled CONFIG WEIGHTS \\
        --model teacher CONFIG WEIGHTS

Writes PNG files, and the same to TensorBoard, below --output. The response uses the blocks learned
in distillation where a checkpoint has them: a distilled student's own, and the teacher's from the
checkpoint named by --blocks. Elsewhere it is the product of the features themselves.
"""

import os
import sys

from skd.study.common.command import command_parser, run_command
from skd.study.common.models import add_arguments
from skd.study.visualize_attention import visualize


def argument_parser():
    parser = command_parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--input", required=True, help="an image, or a folder of images")
    parser.add_argument("--features", default="backbone", help="module whose maps are looked at")
    parser.add_argument("--levels", nargs="+", help="names of levels (default: all in common)")
    parser.add_argument(
        "--pixel", nargs=2, type=int, metavar=("X", "Y"), help="of the image (default: its center)"
    )
    parser.add_argument("--click", action="store_true", help="choose the pixel in a window")
    parser.add_argument("--blocks", help="distilled checkpoint with the teacher's blocks")
    parser.add_argument("--teacher", default="teacher", help="name of the model they belong to")
    parser.add_argument(
        "--output", default=os.path.join("output", "attention"), help="folder of the pictures"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: visualize(argument_parser().parse_args())))
