"""Train and evaluate several models side by side, each by train_net in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from ...config import is_lazy_file
from ...config.run_settings import lazy_paths
from ...distillers import DISTILLER_REGISTRY
from ...runtime.lock import acquire, release
from .command import RunError
from .devices import default_jobs, default_threads, visible_gpus
from .metrics import main_metrics, read_metrics
from .progress import Display


@dataclass
class ChildRun:
    """
    One call of train_net, which evaluates only if no iterations are asked for. ``folder`` becomes
    an ordinary Detectron2 output folder. ``opts`` are KEY, VALUE, ... of either form of config.
    """

    name: str
    config: str
    folder: str
    iterations: int
    opts: List[str] = field(default_factory=list)
    flags: List[str] = field(default_factory=list)
    after: Optional["ChildRun"] = None  # has to end well before this one starts
    process: Optional[subprocess.Popen] = None
    gpu: str = ""
    error: str = ""

    def command(self) -> List[str]:
        command = [sys.executable, "-m", "skd.train_net", "--config-file", self.config, *self.flags]
        opts = ["OUTPUT_DIR", self.folder, *self.opts]
        if self.iterations:
            opts = ["SOLVER.MAX_ITER", str(self.iterations), *opts]
        else:
            command.append("--eval-only")
        return [*command, *options_for(self.config, opts)]

    def start(self, threads: int, resume: bool = False, gpu: str = "") -> None:
        os.makedirs(self.folder, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        self.gpu, self.error = gpu, ""
        command = self.command()
        if resume and os.path.exists(os.path.join(self.folder, "last_checkpoint")):
            command.insert(3, "--resume")
        elif os.path.exists(os.path.join(self.folder, "metrics.json")):  # of an earlier attempt
            acquire(self.folder)  # or an error: that attempt is still at work
            os.remove(os.path.join(self.folder, "metrics.json"))
            release(self.folder)  # for the process to come
        with open(os.path.join(self.folder, "stdout.txt"), "w") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT
            )

    def ended(self) -> bool:
        """Whether it has ended; :attr:`error` then holds the end of its output if it failed."""
        code = self.process.poll()
        if code:
            with open(os.path.join(self.folder, "stdout.txt"), errors="replace") as f:
                end = "".join(f.readlines()[-15:])
            # results are made to be shared: without this machine's paths
            self.error = f"ended with {code}:\n" + end.replace(f"{sys.prefix}{os.sep}", "")
        return code is not None

    def finished(self) -> bool:
        """Whether its folder holds the final checkpoint, if it trains, and the evaluation of it."""
        saved = os.path.exists(os.path.join(self.folder, "model_final.pth"))
        done = any(main_metrics(row) for row in self.rows()[-1:])
        return done and (saved or not self.iterations)

    def rows(self) -> List[Dict]:
        """What the trainer wrote to metrics.json so far."""
        return read_metrics(self.folder)


def option_pairs(opts: Sequence[str]) -> List[str]:
    """
    KEY, VALUE, ... of ``--opts``, also of what is written as key=value, as LazyConfigs have it.

    Raises:
        ValueError: a key without a value.
    """
    parts: List[str] = []
    for part in opts:
        named = len(parts) % 2 == 0 and "=" in part  # in the place of a key, which has none
        parts += part.split("=", 1) if named else [part]
    if len(parts) % 2:
        raise ValueError(f"--opts ends with {parts[-1]}, a key; it must have a value.")
    return parts


def options_for(config: str, opts: Sequence[str]) -> List[str]:
    """
    KEY, VALUE, ... of either form, as train_net takes them for a config file of its form.

    Raises:
        ValueError: a YAML config's key that has no counterpart in a LazyConfig, which this is.
    """
    pairs = list(zip(opts[::2], opts[1::2]))
    if is_lazy_file(config):
        return [option for key, value in pairs for option in lazy_options(key, value)]
    names = {path: key for key, path in lazy_paths().items()}
    return [option for key, value in pairs for option in (names.get(key, key), value)]


def fits(config: str, key: str) -> bool:
    """Whether a config file of this form can be given the option; a model zoo's name is YAML."""
    if is_lazy_file(config):
        return not _is_yaml(key) or key in lazy_paths()
    return _is_yaml(key) or key in lazy_paths().values()


def _is_yaml(key: str) -> bool:
    return key.split(".")[0].isupper()


def lazy_options(key: str, value: str) -> List[str]:
    """
    A key of either form and its value, as train_net takes them for a LazyConfig.

    Raises:
        ValueError: a YAML config's key that has no counterpart.
    """
    if key == "MODEL.DISTILLER.NAME":  # all of it: one method's settings are not another's
        method = DISTILLER_REGISTRY.get(value)
        target = f"{method.__module__}.{method.__qualname__}"
        return ["model.distiller=null", f"model.distiller={{_target_: {target}}}"]
    paths = lazy_paths()
    if _is_yaml(key) and key not in paths:
        raise ValueError(
            f"{key} has no counterpart in a LazyConfig; the options for one must be its own keys, "
            f"or {', '.join(paths)} or MODEL.DISTILLER.NAME."
        )
    return [f"{paths.get(key, key)}={value}"]


def run_all(
    runs: Sequence[ChildRun],
    jobs: int = 0,
    resume: bool = False,
    keep_going: bool = False,
    on_end: Callable[[ChildRun], None] = lambda run: None,
    threads: int = 0,
) -> None:
    """
    Run everything in the order given, with a display of progress.

    Args:
        jobs: how many at a time; 0 for one a GPU, or without GPUs one a core.
        resume: let runs that were interrupted go on from their last checkpoint.
        keep_going: go on when a run fails.
        on_end: called after each run, failed ones too.
        threads: of every run, first and last; 0 for its share of the cores.

    Raises:
        RunError: a run failed, and ``keep_going`` is off; the others are stopped.
    """
    stop_on_sigterm()
    jobs = jobs or default_jobs()
    threads = threads or default_threads(jobs, len(runs))
    running: List[ChildRun] = []
    with Display(runs) as display:
        try:
            for run in _ended(list(runs), running, jobs, threads, resume, display):
                on_end(run)
                if run.error and not keep_going:
                    raise RunError(f"the run '{run.name}' {run.error}")
        finally:
            stop(running)


def _ended(
    waiting: List[ChildRun],
    running: List[ChildRun],
    jobs: int,
    threads: int,
    resume: bool,
    display: Display,
) -> Iterator[ChildRun]:
    """Start the runs that wait, and give each as it ends, or cannot start; changes both lists."""
    gpus = visible_gpus()
    while waiting or running:
        for run in [r for r in waiting if r.after and r.after.error]:
            waiting.remove(run)
            run.error = f"was not started, because '{run.after.name}' failed"
            display.update(run, True)
            yield run
        ready = [r for r in waiting if not (r.after in waiting or r.after in running)]
        for run in ready[: jobs - len(running)]:
            waiting.remove(run)
            run.start(threads, resume, least_used(gpus, running))
            running.append(run)
        time.sleep(1)
        for run in list(running):
            ended = run.ended()
            display.update(run, ended)
            if ended:
                running.remove(run)
                yield run


def stop_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does: through ``finally``, or its runs would go on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def stop(runs: Sequence[ChildRun]) -> None:
    """End runs that are at work; a training then writes a checkpoint to go on from."""
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
    for run in runs:
        run.process.wait()


def least_used(gpus: List[str], running: Sequence[ChildRun]) -> str:
    """The GPU that the fewest of these runs use; "" where there is none."""
    used = [run.gpu for run in running]
    return min(gpus, key=used.count) if gpus else ""
