#!/usr/bin/env python
"""
Find settings for a student, teacher and dataset of yours: how strong distillation pulls, in which
proportions of its terms, along which schedule, on which levels, by which method. Trials that fall
behind are given up early (successive halving, by optuna), every method gets as many, and all are
compared on images held out of the training set, with the same seed, beside the baseline (the
student without a teacher). Configs are YAML (--opts KEY VALUE) or LazyConfigs (--opts key=value).
Repeat the command to go on after an interruption, or with more --trials or --minutes.

    python tools/tune.py --config-file CONFIG --teacher CONFIG --teacher-weights FILE --trials 12 \\
        --register-coco my_train train.json images --register-coco my_val val.json images \\
        --opts DATASETS.TRAIN "('my_train',)" DATASETS.TEST "('my_val',)"
    python tools/tune.py --config-file CONFIG --teacher CONFIG --minutes 600 \\
        --methods StructuredDistiller PKD --train NAME --test NAME

Writes results.jsonl (a line per run), README.md (tables, and the settings found) and confirm.yaml
(a study of them, for tools/compare.py) into --output.
"""

import os
import shlex
import sys

from skd.study.common.command import (
    add_machine_arguments,
    add_setup_arguments,
    command_parser,
    run_command,
)
from skd.study.tune.run import tune


def argument_parser():
    parser = command_parser(__doc__)
    parser.add_argument(
        "--config-file", required=True, help="config of the student, which does not distil"
    )
    parser.add_argument("--teacher", required=True, help="its config, as for train_net.py")
    parser.add_argument("--teacher-weights", help="its checkpoint (default: the model zoo's)")
    parser.add_argument("--trials", type=int, help="budget: trials of each method")
    parser.add_argument(
        "--minutes", type=float, help="budget: of all; trials come in rounds of one of each method,"
        " and no round starts that would likely end later",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", default=["StructuredDistiller"], help="names, or 'all'"
    )
    parser.add_argument(
        "--levels", nargs="+", default=[], metavar="p2,p3",
        help="choices beside all levels (default: all but the finest, all but the coarsest)",
    )  # fmt: skip
    parser.add_argument("--iterations", type=int, help="of a full run (default: the config's)")
    parser.add_argument(
        "--rungs", type=int, default=3, help="evaluations at which trials are compared, with the "
        "last one; 1 gives none up",
    )  # fmt: skip
    parser.add_argument(
        "--factor", type=int, default=2, help="of the trials at a rung one in so many goes on, and "
        "rungs are so many times apart",
    )  # fmt: skip
    parser.add_argument("--metric", default="", help="to raise (default: box AP, or a task's own)")
    parser.add_argument("--seed", type=int, default=1, help="of every run, and of the search")
    add_setup_arguments(parser)
    parser.add_argument(
        "--folds", type=int, default=5, help="one in so many of the images to train on, "
        "which --register-coco names, is held out",
    )  # fmt: skip
    parser.add_argument("--train", nargs="+", help="datasets to train on (default: the config's)")
    parser.add_argument(
        "--test", nargs="+", help="datasets to compare on, in place of held-out images; never the "
        "one to report on",
    )  # fmt: skip
    parser.add_argument("--work", default=os.path.join("output", "tune"), help="runs' folders")
    parser.add_argument("--output", help="folder of the results (default: that of --work)")
    add_machine_arguments(parser)
    parser.add_argument(
        "--opts", nargs="*", default=[], help="KEY VALUE ..., or key=value, for every run"
    )
    return parser


def main() -> int:
    command = shlex.join(["python", "tools/tune.py", *sys.argv[1:]])
    return tune(argument_parser().parse_args(), command)


if __name__ == "__main__":
    sys.exit(run_command(main))
