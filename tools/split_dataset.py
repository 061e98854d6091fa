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

from skd.data.reading import open_coco
from skd.data.split import take_folds, take_names
from skd.runtime.whole_files import write_whole
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
    content = open_coco(args.input)
    if args.folds:
        part = take_folds(content, args.folds, set(args.take))
    else:
        with open(args.names or args.without, encoding="utf-8-sig") as f:
            names = f.read().splitlines()
        part = take_names(content, names, without=bool(args.without))
        unknown = sorted({*names} - {"", *(x["file_name"] for x in content["images"])})
        if unknown:
            print(
                f"{len(unknown)} of {len({*names})} names are no image's, such as {unknown[0]!r}."
            )
    write_whole(args.output, lambda f: f.write(json.dumps(part).encode()))
    print(f"{len(part['images'])} of {len(content['images'])} images are in {args.output}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
