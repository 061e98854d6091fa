"""
Train or evaluate a Detectron2 model, with a teacher or without.

    python -m skd.train_net --config-file CONFIG --num-gpus 8 [--teacher CONFIG] [KEY VALUE ...]
    torchrun --nproc-per-node 8 -m skd.train_net --config-file CONFIG ...

CONFIG is any Detectron2 config, a .yaml or a LazyConfig .py. It distils if it says so itself, or if
--teacher is given; otherwise the model it describes is trained.
"""

import argparse
import os
import sys
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from .config import (
    Config,
    distill,
    form_of,
    is_distilling,
    projects,
    read_config,
    run_settings,
    use_project,
)
from .config.naming import written_as
from .config.pipe import as_file
from .data import check_datasets, coco, register_coco, register_shapes
from .engine import SKDTrainer, beside_training, describe, launch, prepare_evaluation
from .runtime.lost_output import outlive_terminal
from .runtime.run_folder import open_folder
from .runtime.user_errors import EARLY_ERRORS, UserError, exits_on


def argument_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser()
    parser.add_argument(
        "--teacher",
        default="",
        metavar="CONFIG",
        help="distil from this detector: a .yaml or LazyConfig .py file or a model-zoo name",
    )
    parser.add_argument(
        "--teacher-weights",
        default="",
        metavar="FILE",
        help="the teacher's checkpoint, path or URL (default: the model zoo's)",
    )
    parser.add_argument(
        "--unlabelled",
        action="append",
        default=[],
        metavar="DIR",
        help="distil on the images in this folder too, which need no labels (again for another)",
    )
    parser.add_argument(
        "--trust-lazy",
        action="store_true",
        help="let a YAML config name a LazyConfig as its teacher, and a project or a function for "
        "it, which run code",
    )
    projects.add_argument(parser)
    coco.add_argument(parser)
    return parser


def setup(args: argparse.Namespace) -> Config:
    """
    Build the config from a file of either form, the flags and the options; start the log and write
    config.yaml, and for a run that distils student.yaml.

    Raises:
        ValueError: a teacher without a config that distils, or the reverse; classes that differ.
        FolderInUseError: another run is using the output folder; nothing has been written to it.
    """
    cfg = _read(args)
    form = form_of(cfg)
    # an evaluation writes beside a training that is using the folder; a training keeps others out
    beside = beside_training(cfg, args.resume) if args.eval_only else ""
    args.resume = args.resume and not beside
    folder = form.output_dir(cfg)
    if not args.eval_only:
        with written_as(run_settings.form_name(cfg)):
            open_folder(folder)
    log = setup_logger(folder, distributed_rank=comm.get_rank(), name="skd")
    if beside:
        log.warning(beside)
    register_shapes()  # the config may name them
    check_datasets(cfg, args.eval_only)
    form.freeze(cfg)
    with _kept(os.path.join(folder, "config.yaml"), args.eval_only):
        default_setup(cfg, args)
    if comm.is_main_process() and is_distilling(cfg):
        weights = os.path.join(folder, "model_final.pth")
        form.save_trained_student(cfg, weights, os.path.join(folder, "student.yaml"))
    return cfg


def _read(args: argparse.Namespace) -> Config:
    """The config from file, flags and options, in this order; checked, and nothing written."""
    for name in args.project:
        use_project(name)
    cfg = read_config(args.config_file)
    form = form_of(cfg)
    if args.teacher:
        distill(cfg, args.teacher, args.teacher_weights)
    if args.unlabelled:
        run_settings.extend(cfg, "unlabelled", args.unlabelled)
    cfg = form.override(cfg, args.opts)
    form.check(cfg)
    if args.trust_lazy:
        form.trust(cfg)
    if args.project:
        form.record_projects(cfg, args.project)
    if not args.eval_only:
        form.check_training(cfg)
    if args.eval_only or not is_distilling(cfg):
        # nothing to learn, or nobody to learn from
        cfg = form.student_config(cfg, keep_settings=True)
    return cfg


@contextmanager
def _kept(path: str, keep: bool) -> Iterator[None]:
    """A run's own config.yaml stays, through an evaluation in its folder."""
    keep = keep and comm.is_main_process() and PathManager.isfile(path)
    if keep:
        with PathManager.open(path, "r") as f:
            content = f.read()
    try:
        yield
    finally:
        if keep:
            with PathManager.open(path, "w") as f:
                f.write(content)


def prepare(args: argparse.Namespace) -> Callable[[], Dict[str, Any]]:
    """
    All that comes before the training, or with ``--eval-only`` the evaluation.

    Returns:
        What does the work, and returns the results of the last evaluation, in the main process.
    """
    if not args.config_file:
        raise ValueError("--config-file is missing: give a .yaml or a LazyConfig .py file.")
    if args.teacher_weights and not args.teacher:
        raise ValueError("--teacher-weights without --teacher: name the teacher's config too.")
    for dataset in args.register_coco:
        register_coco(*dataset, check=False)
    cfg = setup(args)
    if args.eval_only:
        return prepare_evaluation(describe(cfg), resume=args.resume)
    trainer = SKDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def main(args: argparse.Namespace) -> Dict[str, Any]:
    """
    Train, or with ``--eval-only`` evaluate.

    Returns:
        Results of the last evaluation, in the main process.
    """
    return prepare(args)()


def main_of_command(args: argparse.Namespace) -> Dict[str, Any]:
    """:func:`main` of a command: an error of the user's ends it with its message and 2."""
    outlive_terminal()
    with exits_on(*EARLY_ERRORS):
        work = prepare(args)
    with exits_on(UserError):
        return work()


def command() -> None:
    args = argument_parser().parse_args()
    try:
        with exits_on(UserError), as_file(args.config_file) as args.config_file:
            launch(main_of_command, args)
    except KeyboardInterrupt:  # before the training, which ends in good order
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    command()
