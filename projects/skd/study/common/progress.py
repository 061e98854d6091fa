"""Display of runs at work."""

import time
from typing import Dict, Protocol, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .metrics import read_metrics

MANY = 8  # runs, from which on only those at work are shown
ENOUGH = 0.01  # of all iterations, from which on the time left is told


class Shown(Protocol):
    name: str
    folder: str
    iterations: int
    error: str


class Display:
    """
    Bars in a terminal: one for all iterations, with the time left, and one for each run. Elsewhere
    a line for every tenth of a run, or if there are many for every run.
    """

    def __init__(self, runs: Sequence[Shown]):
        self.console = Console()
        self.bars = Progress(
            # names are text, not rich's markup
            TextColumn("{task.description:>12}", markup=False), BarColumn(), MofNCompleteColumn(),
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
        self.before: Dict[str, int] = {}  # iterations that an interrupted command has made
        self.shown: Dict[str, int] = {}
        self.begin = time.time()

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def update(self, run: Shown, ended: bool) -> None:
        steps = [row for row in read_metrics(run.folder) if "total_loss" in row]
        done = steps[-1]["iteration"] + 1 if steps else 0
        self.before.setdefault(run.name, done)
        done = self.done[run.name] = max(run.iterations, 1) if ended else done
        loss = f"loss {steps[-1]['total_loss']:.3f}" if steps else ""
        if self.console.is_terminal:
            self._bars(run, ended, done, loss)
        else:
            self._lines(run, ended, done, loss)

    def _bars(self, run: Shown, ended: bool, done: int, loss: str) -> None:
        task = self.tasks[run.name]
        self.bars.start_task(task)
        visible = not (self.many and ended)
        self.bars.update(task, completed=done, loss=loss, visible=visible)
        self.bars.update(self.all, completed=sum(self.done.values()))

    def _lines(self, run: Shown, ended: bool, done: int, loss: str) -> None:
        tenth = 10 if ended else 0 if self.many else 10 * done // max(run.iterations, 1)
        if tenth <= self.shown.get(run.name, -1):
            return
        self.shown[run.name] = tenth
        state = f"iteration {done} of {run.iterations}, {loss or 'starting'}"
        state = state if run.iterations else "evaluating"
        if ended:
            overall = sum(self.done.values())
            state = f"failed; see {run.folder}/stdout.txt" if run.error else "done"
            state += f"; {overall / self.total:.0%} of all"
            made = overall - sum(self.before.values())
            if made >= ENOUGH * self.total:
                left = (time.time() - self.begin) / made * (self.total - overall)
                state += f", {left / 60:.0f} minutes left"
        print(f"[{time.strftime('%H:%M:%S')}] {run.name}: {state}", flush=True)
