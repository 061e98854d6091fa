#!/usr/bin/env python
"""
All that is wrong with a dataset in COCO's format, at once: broken or missing images, boxes and
masks that cannot be, ids that are there twice or not at all. Ends with 1 if training would stop at
any of it, with 0 if there are warnings at most.

    python tools/check_dataset.py train.json images/train
"""

import sys

from skd.data.check import examine
from skd.data.dataset_facts import facts_of, what_reaches
from skd.data.mend import finish
from skd.study.common.command import command_parser, run_command


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument("json_file", help="annotations")
    parser.add_argument("image_root", help="the folder the file names in it start from")
    parser.add_argument("--no-images", action="store_true", help="do not read the images, quickly")
    return parser


def main() -> int:
    args = argument_parser().parse_args()
    report = examine(args.json_file, args.image_root, not args.no_images)
    problems = report.problems
    for problem in problems:
        print(f"{problem.level}: {problem}")
    errors = len(report.errors)
    if not errors:
        finish(report.content, report.notes, with_masks=True)
        print(what_reaches(facts_of(report.content, args.json_file)) + ".")
    print(f"{errors} errors, {len(problems) - errors} warnings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
