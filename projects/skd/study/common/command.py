"""What every command in tools/ does the same way: help with defaults, errors of one line."""

import argparse
import os
import sys
from typing import Callable, List, NoReturn, Optional, Sequence

from ...config import projects
from ...data import coco, register_coco, register_shapes
from ...runtime.user_errors import (
    EARLY_ERRORS,
    EXIT_USER_ERROR,
    message_of,
    wants_traceback,
)

EXIT_BROKEN_PIPE = 141


class RunError(RuntimeError):
    """A run in a process of its own failed; the message ends with its output."""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        told = "default" in (action.help or "")
        empty = action.default is None or action.default in ([], False)
        return action.help if told or empty else super()._get_help_string(action)


def whole(text: str) -> int:
    """An argument that is a whole number, 0 or above."""
    return _at_least(text, 0)


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    return _at_least(text, 1)


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        expected = "a whole number" + (" above 0" if least else ", 0 or above")
        raise argparse.ArgumentTypeError(f"{text!r}; it must be {expected}")
    return int(text)


def command_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring and states the defaults."""
    return _Parser(description=doc, formatter_class=_Help)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments") and "--opts" in self.format_usage():
            message += " (KEY VALUE ... of a config go behind --opts)"
        super().error(message)


def add_setup_arguments(parser: argparse.ArgumentParser) -> None:
    """What has to be known before a config is read: other projects, and datasets."""
    projects.add_argument(parser)
    coco.add_argument(parser)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """How runs in processes of their own share a machine."""
    parser.add_argument(
        "--jobs", type=whole, default=0, help="runs at a time (default: one a GPU of "
        "CUDA_VISIBLE_DEVICES; without GPUs one a core)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=whole, default=0,
        help="of each run (default: its share of the cores, kept from the first call)",
    )  # fmt: skip


def set_up(args: argparse.Namespace) -> None:
    """The built-in dataset, and what :func:`add_setup_arguments` asks for."""
    for name in args.project:
        projects.use_project(name)
    register_shapes()
    for dataset in args.register_coco:
        register_coco(*dataset)


def setup_flags(args: argparse.Namespace, datasets: Sequence[Sequence[str]]) -> List[str]:
    """
    What :func:`add_setup_arguments` asks for, as flags for a run in a process of its own.

    Args:
        datasets: NAME, JSON and IMAGES of each.
    """
    flags = [part for name in args.project for part in ("--project", name)]
    return flags + [part for dataset in datasets for part in ("--register-coco", *dataset)]


def run_command(main: Callable[[], Optional[int]]) -> int:
    """
    Returns:
        The exit code: 2 after an error of the user's, told in one line; 1 after a run that failed;
        130 after Ctrl-C; 141, as of a program that SIGPIPE ends, if its output is not read.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, like head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("Interrupted; repeat the command to go on.", file=sys.stderr)
        return 130
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except EARLY_ERRORS as error:
        if wants_traceback():
            raise
        print(f"error: {' '.join(message_of(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
