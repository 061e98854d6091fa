#!/usr/bin/env python
"""
Write a part of a dataset in COCO's format: some folds of its images, by a hash of their names, or
those of a list.

    python tools/split_dataset.py train.json tune_val.json --folds 4 --take 0
    python tools/split_dataset.py train.json tune_train.json --folds 4 --take 1 2 3
    python tools/split_dataset.py train.json ten_percent.json --folds 10 --take 0
    python tools/split_dataset.py train.json night.json --names night.txt
    python tools/split_dataset.py train.json day.json --without night.txt
"""

import json
import sys

from skd.data.split import take_folds, take_names
from skd.study.common.command import command_parser, positive, run_command


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("input", help="the JSON file of all images")
    parser.add_argument("output", help="the JSON file to write")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--folds", type=positive, help="into how many to divide the images")
    way.add_argument("--names", metavar="FILE", help="of images to keep, a file_name a line")
    way.add_argument("--without", metavar="FILE", help="of images to leave out")
    parser.add_argument("--take", type=int, nargs="+", help="with --folds: those to keep, from 0")
    return parser


def main() -> None:
    parser = argument_parser()
    args = parser.parse_args()
    if bool(args.folds) != bool(args.take):
        parser.error("--folds and --take belong together")
    with open(args.input) as f:
        content = json.load(f)
    if args.folds:
        part = take_folds(content, args.folds, set(args.take))
    else:
        with open(args.names or args.without) as f:
            part = take_names(content, f.read().splitlines(), without=bool(args.without))
    with open(args.output, "w") as f:
        json.dump(part, f)
    print(f"{len(part['images'])} of {len(content['images'])} images are in {args.output}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
