"""Processes and commands, for all tests."""

import functools
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import textwrap
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest import mock

from detectron2.utils import comm
from torch import distributed as dist

from tests.helpers import ROOT


def environment(datasets):
    """Environment of a process of its own, with DETECTRON2_DATASETS as given."""
    paths = [os.path.join(ROOT, "projects"), os.getenv("PYTHONPATH", "")]
    return {
        **os.environ,
        "DETECTRON2_DATASETS": str(datasets),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }


def process_config(cfg, folder, name="out", test=()):
    """
    Write the config for a training in a process of its own, on the built-in dataset.

    Args:
        name: of the run's folder, and of the file; both are put into ``folder``.
        test: the test sets.

    Returns:
        The file's path.
    """
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), test
    cfg.OUTPUT_DIR = str(folder / name)
    path = folder / f"{name}.yaml"
    path.write_text(cfg.dump())
    return path


FORWARD = """
from detectron2.utils import comm
from skd import DistillRCNN

forward, calls = DistillRCNN.forward, 0

def patched_forward(self, inputs):
    global calls
    calls += 1
{body}

DistillRCNN.forward = patched_forward
"""


def patched_forward(folder, body):
    """
    :func:`patched` with another ``DistillRCNN.forward(self, inputs)``, whose body may use
    ``forward``, the one there is, and ``calls``, which counts from 1.
    """
    return patched(folder, FORWARD.format(body=textwrap.indent(body, "    ")))


def patched(folder, code):
    """Write a train_net.py that first runs some code, in every process: its path."""
    path = os.path.join(str(folder), "patched_train_net.py")
    with open(path, "w") as f:
        f.write(
            f"import os, sys\nsys.path.insert(0, {ROOT!r})\nimport train_net\n{code}\n"
            "if __name__ == '__main__':\n"
            "    train_net.launch(train_net.main, train_net.argument_parser().parse_args())\n"
        )
    return path


@functools.lru_cache(maxsize=None)
def parser_of(script):
    """The parser of one of the repository's commands, by its path from the root."""
    path = os.path.join(ROOT, script)
    spec = importlib.util.spec_from_file_location("command_" + os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.argument_parser()


def run_script(script, *args, datasets, ok=True, timeout=600):
    """
    Run a script of the repository in a process of its own.

    Args:
        script: its path from the root.
        args: of its command line.
        datasets: DETECTRON2_DATASETS of that process.
        ok: whether it has to succeed, or has to fail.

    Returns:
        What it printed.
    """
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, script), *map(str, args)],
        env=environment(datasets), cwd=ROOT, timeout=timeout, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout[-4000:]
    return done.stdout


def call_script(script, *args, ok=True):
    """
    Do as :func:`run_script`, in this process, which has everything imported already: for commands
    that neither train nor start processes.
    """
    said, code = io.StringIO(), 0
    with mock.patch.object(sys, "argv", [script, *map(str, args)]):
        with redirect_stdout(said), redirect_stderr(said):
            try:
                runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
            except SystemExit as end:
                code = end.code
    assert (not code) == ok, said.getvalue()
    return said.getvalue()


@contextmanager
def one_process(folder, backend="gloo"):
    """A process group of this process alone: enough for data-parallel training to complain."""
    store = f"file://{folder / 'store'}"
    dist.init_process_group(backend, rank=0, world_size=1, init_method=store)
    try:
        yield
    finally:
        dist.destroy_process_group()


def leave_together():
    """
    The last line of what detectron2.engine.launch runs in several processes: gloo's threads may
    abort an interpreter that ends while they are at work.
    """
    if comm.get_world_size() > 1:
        comm.synchronize()
        os._exit(0)
