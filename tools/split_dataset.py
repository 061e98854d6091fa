#!/usr/bin/env python
"""
Write a part of a dataset in COCO's format: some folds of its images, by a hash of their names.

    python tools/split_dataset.py train.json tune_val.json --folds 4 --take 0
    python tools/split_dataset.py train.json tune_train.json --folds 4 --take 1 2 3
    python tools/split_dataset.py train.json ten_percent.json --folds 10 --take 0
"""

import json
import sys

from skd.data.split import take_folds
from skd.study.common.command import command_parser, positive, run_command


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("input", help="the JSON file of all images")
    parser.add_argument("output", help="the JSON file to write")
    parser.add_argument(
        "--folds", type=positive, required=True, help="into how many to divide them"
    )
    parser.add_argument("--take", type=int, nargs="+", required=True, help="folds to keep, from 0")
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    with open(args.input) as f:
        content = json.load(f)
    part = take_folds(content, args.folds, set(args.take))
    with open(args.output, "w") as f:
        json.dump(part, f)
    print(f"{len(part['images'])} of {len(content['images'])} images are in {args.output}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
