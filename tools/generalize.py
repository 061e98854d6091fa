#!/usr/bin/env python
"""
How well do models do on datasets they never saw? Classes are matched by name, and by a mapping
file for the rest; AP counts the matched classes only.

    python tools/generalize.py --model baseline CONFIG WEIGHTS --model distilled CONFIG WEIGHTS \\
        --dataset cityscapes_fine_instance_seg_val --classes mapping.yaml

The mapping file has the dataset's class on the left and the model's on the right, like "rider:
person"; an empty right side leaves the class out.
"""

import os
import sys

from skd.study.common.command import command_parser, run_command
from skd.study.common.models import add_arguments
from skd.study.generalize import generalize


def argument_parser():
    parser = command_parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--dataset", nargs="+", required=True, help="registered datasets")
    parser.add_argument("--classes", help="YAML file: the dataset's class to the model's class")
    parser.add_argument(
        "--output", default=os.path.join("output", "generalize"), help="folder of the results"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: generalize(argument_parser().parse_args())))
