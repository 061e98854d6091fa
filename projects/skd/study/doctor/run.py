"""What tools/doctor.py does."""

import argparse
import os

from ...config import distill, form_of, is_distilling, read_config
from ...config.lazy_config import allow
from ...runtime.downloads import is_remote
from ...runtime.weights_file import without_query
from ..common.command import set_up
from ..common.paths import find_file
from .examine import examine


def run_doctor(args: argparse.Namespace) -> int:
    """
    Print the verdict.

    Returns:
        1 if anything is wrong, else 0.

    Raises:
        ValueError: a config that does not distil, or no such data, device or student.
    """
    set_up(args)
    student = args.student_weights
    if student and not is_remote(student) and not os.path.exists(without_query(student)):
        raise ValueError(f"--student-weights: no file '{student}'.")
    for path in filter(None, (args.config_file, args.teacher)):
        allow(find_file(path))  # Python or not: the user has named it
    cfg = read_config(find_file(args.config_file))
    form_of(cfg).check(cfg)
    if args.teacher:
        distill(cfg, find_file(args.teacher), find_file(args.teacher_weights))
    form_of(cfg).override(cfg, args.opts)
    if not is_distilling(cfg):
        raise ValueError(f"{args.config_file} names no teacher: give --teacher.")
    form_of(cfg).check_training(cfg)
    verdict = examine(
        cfg,
        iterations=args.iterations,
        images=args.images,
        student_weights=student,
    )
    print(verdict)
    return 1 if verdict.findings else 0
