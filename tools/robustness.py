#!/usr/bin/env python
"""
How much of a detector's AP is left on corrupted images? The fifteen corruptions at five severities
of Michaelis et al. (2019), for several models side by side: AP for each, mPC (mean performance
under corruption) and rPC (mPC as a share of the AP on clean images), for boxes and masks.

    python tools/robustness.py --model baseline CONFIG WEIGHTS --model distilled CONFIG WEIGHTS

Finished evaluations are kept in results.jsonl, by the content of weights, config and data: repeat
the command after an interruption.
"""

import os
import sys

from skd.evaluation import CORRUPTIONS
from skd.evaluation.robustness import SEVERITIES
from skd.study.common.command import command_parser, run_command, whole
from skd.study.common.models import add_arguments
from skd.study.robustness import robustness


def argument_parser():
    parser = command_parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--dataset", help="registered dataset (default: the config's test set)")
    parser.add_argument(
        "--corruptions", nargs="+", default=CORRUPTIONS, choices=CORRUPTIONS, metavar="NAME",
        help=f"of {', '.join(CORRUPTIONS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--severities", nargs="+", type=int, default=SEVERITIES, choices=SEVERITIES, help="of each"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the corruptions")
    parser.add_argument("--workers", type=whole, default=2, help="of the loader; they do the work")
    parser.add_argument(
        "--output", default=os.path.join("output", "robustness"), help="folder of the results"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(lambda: robustness(argument_parser().parse_args())))
