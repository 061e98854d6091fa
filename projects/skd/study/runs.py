"""Train and evaluate several models side by side, each by train_net.py in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
CONFIGS = os.path.join("configs", "shapes")
TASKS = {"bbox": "box AP", "segm": "mask AP"}
MANY = 8  # runs, from which on only those at work are shown


@dataclass
class Run:
    """
    One call of train_net.py, which evaluates only if no iterations are asked for. ``folder``
    becomes an ordinary Detectron2 output folder.
    """

    name: str
    config: str
    folder: str
    iterations: int
    opts: List[str] = field(default_factory=list)
    flags: List[str] = field(default_factory=list)
    after: Optional["Run"] = None  # has to end well before this one starts
    process: Optional[subprocess.Popen] = None
    error: str = ""

    def command(self) -> List[str]:
        command = [sys.executable, "train_net.py", "--config-file", self.config, *self.flags]
        if self.iterations:
            opts = ["SOLVER.MAX_ITER", str(self.iterations), *self.opts]
        else:
            command.append("--eval-only")
            opts = self.opts
        return [*command, "OUTPUT_DIR", self.folder, *opts]

    def start(self, threads: int, resume: bool = False) -> None:
        os.makedirs(self.folder, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        command = self.command()
        if resume and os.path.exists(os.path.join(self.folder, "last_checkpoint")):
            command.insert(2, "--resume")
        elif os.path.exists(os.path.join(self.folder, "metrics.json")):  # of an earlier attempt
            os.remove(os.path.join(self.folder, "metrics.json"))
        with open(os.path.join(self.folder, "stdout.txt"), "w") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )

    def ended(self) -> bool:
        """Whether it has ended; :attr:`error` then holds the end of its output if it failed."""
        code = self.process.poll()
        if code:
            with open(os.path.join(self.folder, "stdout.txt")) as f:
                self.error = f"ended with {code}:\n" + "".join(f.readlines()[-15:])
        return code is not None

    def finished(self) -> bool:
        """Whether its folder holds the final checkpoint, if it trains, and the evaluation of it."""
        saved = os.path.exists(os.path.join(self.folder, "model_final.pth"))
        done = any("bbox/AP" in row for row in self.rows()[-1:])
        return done and (saved or not self.iterations)

    def rows(self) -> List[Dict]:
        """What the trainer wrote to metrics.json so far."""
        return read_metrics(self.folder)


def read_metrics(folder: str) -> List[Dict]:
    rows = []
    try:
        with open(os.path.join(folder, "metrics.json")) as f:
            for line in f:
                rows.append(json.loads(line))
    except (FileNotFoundError, json.JSONDecodeError):  # not there yet, or half a line
        pass
    return rows


def read_ap(folder: str) -> Dict[str, float]:
    """The last evaluation of a run: AP of boxes and masks, 0 to 100."""
    last = [row for row in read_metrics(folder) if "bbox/AP" in row][-1]
    return {task: last[f"{task}/AP"] for task in TASKS if f"{task}/AP" in last}


def run_all(
    runs: List[Run],
    jobs: int = 0,
    resume: bool = False,
    keep_going: bool = False,
    on_end: Callable[[Run], None] = lambda run: None,
) -> None:
    """
    Run everything in the order given, with a display of progress.

    Args:
        jobs: how many at a time; 0 for one a core.
        resume: let runs that were interrupted go on from their last checkpoint.
        keep_going: go on when a run fails.
        on_end: called after each run, failed ones too.

    Raises:
        RuntimeError: a run failed, and ``keep_going`` is off; the others are stopped.
    """
    # as Ctrl-C does: through the `finally` below, or the runs would go on alone
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cores = os.cpu_count() or 1
    jobs = min(jobs or cores, len(runs))
    waiting, running = list(runs), []

    def end(run):
        on_end(run)
        if run.error and not keep_going:
            raise RuntimeError(f"The run '{run.name}' {run.error}")

    with _Display(runs) as display:
        try:
            while waiting or running:
                for run in [r for r in waiting if r.after and r.after.error]:
                    waiting.remove(run)
                    run.error = f"was not started, because '{run.after.name}' failed"
                    display.update(run, True)
                    end(run)
                ready = [r for r in waiting if not (r.after in waiting or r.after in running)]
                for run in ready[: jobs - len(running)]:
                    waiting.remove(run)
                    running.append(run)
                    run.start(max(1, cores // jobs), resume)
                time.sleep(1)
                for run in list(running):
                    ended = run.ended()
                    display.update(run, ended)
                    if ended:
                        running.remove(run)
                        end(run)
        finally:
            for run in running:  # a training then writes a checkpoint to go on from
                if run.process.poll() is None:
                    run.process.terminate()
            for run in running:
                run.process.wait()


class _Display:
    """
    Bars in a terminal: one for all iterations, with the time left, and one for each run. Elsewhere
    a line for every tenth of a run, or if there are many for every run.
    """

    def __init__(self, runs: List[Run]):
        self.console = Console()
        self.bars = Progress(
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self.many = len(runs) > MANY
        self.total = sum(max(run.iterations, 1) for run in runs)
        self.all = self.bars.add_task("all", total=self.total, loss="")
        self.tasks = {
            run.name: self.bars.add_task(
                run.name, total=max(run.iterations, 1), loss="", start=False, visible=not self.many
            )
            for run in runs
        }
        self.done: Dict[str, int] = {}
        self.shown: Dict[str, int] = {}
        self.begin = time.time()

    def __enter__(self):
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_):
        self.bars.stop()

    def update(self, run: Run, ended: bool) -> None:
        steps = [row for row in run.rows() if "total_loss" in row]
        done = steps[-1]["iteration"] + 1 if steps else 0
        done = self.done[run.name] = max(run.iterations, 1) if ended else done
        loss = f"loss {steps[-1]['total_loss']:.3f}" if steps else ""
        overall = sum(self.done.values())
        if self.console.is_terminal:
            task = self.tasks[run.name]
            self.bars.start_task(task)
            visible = not (self.many and ended)
            self.bars.update(task, completed=done, loss=loss, visible=visible)
            self.bars.update(self.all, completed=overall)
            return
        tenth = 10 if ended else 0 if self.many else 10 * done // max(run.iterations, 1)
        if tenth > self.shown.get(run.name, -1):
            self.shown[run.name] = tenth
            left = (time.time() - self.begin) / max(overall, 1) * (self.total - overall)
            state = f"iteration {done} of {run.iterations}, {loss or 'starting'}"
            state = state if run.iterations else "evaluating"
            if ended:
                state = f"failed; see {run.folder}/stdout.txt" if run.error else "done"
                state += f"; {overall / self.total:.0%} of all, {left / 60:.0f} minutes left"
            print(f"[{time.strftime('%H:%M:%S')}] {run.name}: {state}", flush=True)


def print_table(title: str, header: List[str], rows: List[List[str]]) -> None:
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def markdown_table(header: List[str], rows: List[List[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
