"""Train and evaluate several models side by side, each by train_net.py in a process of its own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Dict, List, Optional

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = os.path.join("configs", "shapes")
TASKS = {"bbox": "box AP", "segm": "mask AP"}


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
    process: Optional[subprocess.Popen] = None

    def command(self) -> List[str]:
        command = [sys.executable, "train_net.py", "--config-file", self.config]
        if self.iterations:
            opts = ["SOLVER.MAX_ITER", str(self.iterations), *self.opts]
        else:
            command.append("--eval-only")
            opts = self.opts
        return [*command, "OUTPUT_DIR", self.folder, *opts]

    def start(self, threads: int) -> None:
        os.makedirs(self.folder, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        with open(os.path.join(self.folder, "stdout.txt"), "w") as out:
            self.process = subprocess.Popen(
                self.command(), cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )

    def check(self) -> bool:
        """Whether it has ended. Raises RuntimeError with the end of its output if it failed."""
        code = self.process.poll()
        if code:
            with open(os.path.join(self.folder, "stdout.txt")) as f:
                tail = "".join(f.readlines()[-15:])
            raise RuntimeError(f"The run '{self.name}' failed ({code}):\n{tail}")
        return code is not None

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
    return {task: last[f"{task}/AP"] for task in TASKS}


def run_all(runs: List[Run]) -> None:
    """
    Run everything, one run a core at a time, with a display of progress.

    Raises:
        RuntimeError: a run failed; the others are stopped.
    """
    cores = os.cpu_count() or 1
    jobs = min(cores, len(runs))
    waiting, running = list(runs), []
    with _Display(runs) as display:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(waiting.pop(0))
                    running[-1].start(max(1, cores // jobs))
                time.sleep(1)
                for run in list(running):
                    ended = run.check()
                    display.update(run, ended)
                    if ended:
                        running.remove(run)
        finally:
            for run in running:
                if run.process.poll() is None:
                    run.process.terminate()
                    run.process.wait()


class _Display:
    """Bars in a terminal; elsewhere a line for every tenth of a run."""

    def __init__(self, runs: List[Run]):
        self.console = Console()
        self.bars = Progress(
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"), TimeElapsedColumn(), console=self.console,
        )  # fmt: skip
        self.tasks = {
            run.name: self.bars.add_task(
                run.name, total=max(run.iterations, 1), loss="-", start=False
            )
            for run in runs
        }
        self.shown: Dict[str, int] = {}

    def __enter__(self):
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_):
        self.bars.stop()

    def update(self, run: Run, ended: bool) -> None:
        steps = [row for row in run.rows() if "total_loss" in row]
        done = steps[-1]["iteration"] + 1 if steps else 0
        done = max(run.iterations, 1) if ended else done
        loss = f"{steps[-1]['total_loss']:.3f}" if steps else "-"
        if self.console.is_terminal:
            task = self.tasks[run.name]
            self.bars.start_task(task)
            self.bars.update(task, completed=done, loss=loss)
            return
        tenth = 10 if ended else 10 * done // max(run.iterations, 1)
        if tenth > self.shown.get(run.name, -1):
            self.shown[run.name] = tenth
            state = f"iteration {done} of {run.iterations}, loss {loss}"
            state = "done" if ended else state if run.iterations else "evaluating"
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
