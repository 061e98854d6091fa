#!/usr/bin/env python
"""
Make the tables of the documents anew from the results that are committed (docs/results).

    python tools/results.py
"""

import os
import sys

from skd.study.common.command import command_parser, run_command
from skd.study.results import results

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("--root", default=ROOT, help="a checkout (default: this one)")
    return parser


def main() -> None:
    for path in results(argument_parser().parse_args().root):
        print(f"{path} is new.")


if __name__ == "__main__":
    sys.exit(run_command(main))
