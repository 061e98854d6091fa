"""What tools/demo.py does."""

import argparse
import json
import os
import shutil
import time
from typing import Dict, List, Tuple

from ..data import register_shapes
from .common import pictures
from .common.devices import cores
from .common.metrics import TASKS, read_ap
from .common.paths import find_file
from .common.result_files import write_text
from .common.runs import ChildRun, run_all
from .common.tables import markdown_table, print_table

CONFIGS = os.path.join("configs", "shapes")
ITERATIONS = 800
MODELS = ("teacher", "baseline", "distilled")
FILES = ("results.json", "report.md", "attention.png", "predictions.png", "curves.png")


def demo(args: argparse.Namespace) -> None:
    """
    Train, evaluate, draw and report, in ``args.output``.

    Raises:
        ValueError: the folder holds something else than an earlier demo.
        RunError: a run failed.
    """
    start = time.monotonic()
    _remove_earlier(args.output)
    folder = {name: os.path.join(args.output, name) for name in MODELS}
    runs = _train(args, folder)
    results = {name: read_ap(path) for name, path in folder.items()}
    path = os.path.join(args.output, "results.json")
    write_text(path, json.dumps(results, indent=2) + "\n")
    print("Drawing pictures ...", flush=True)
    register_shapes()
    header, rows = _table(results, pictures.draw_all(args.output, folder))
    _write_report(args, runs, markdown_table(header, rows), time.monotonic() - start)
    print(f"Everything is in {args.output}; start with report.md.")
    print_table("Built-in dataset, validation split", header, rows)


def _remove_earlier(output: str) -> None:
    """An earlier demo, whose curves would mix in."""
    others = set(os.listdir(output)) - {*MODELS, *FILES} if os.path.exists(output) else {}
    if others:
        raise ValueError(f"{output} holds more than a demo ({min(others)}): name another folder")
    shutil.rmtree(output, ignore_errors=True)


def _train(args: argparse.Namespace, folder: Dict[str, str]) -> List[ChildRun]:
    """Train both students and evaluate the teacher: the runs, which have ended."""
    options = ["SEED", str(args.seed), *args.opts]
    student = find_file(f"{CONFIGS}/student.yaml")
    teacher, weights = find_file(f"{CONFIGS}/teacher.yaml"), find_file(f"{CONFIGS}/teacher.pth")
    # as flags, because a config's paths are the checkout's
    flags = {"distilled": ["--teacher", teacher, "--teacher-weights", weights], "baseline": []}
    runs = [
        ChildRun(name, student, folder[name], args.iterations, options, more)
        for name, more in flags.items()
    ]
    # trained already, so only evaluated
    runs.append(ChildRun("teacher", teacher, folder["teacher"], 0, ["MODEL.WEIGHTS", weights]))
    print("Training the baseline and the distilled student side by side ...", flush=True)
    run_all(runs, jobs=min(len(runs), cores()))
    shutil.copy(weights, os.path.join(folder["teacher"], "model_final.pth"))
    return runs


def _table(
    results: Dict[str, Dict[str, float]], seconds: Dict[str, float]
) -> Tuple[List[str], List[List[str]]]:
    """Header and rows: AP and time of each model, and the gain."""
    header = ["model", *TASKS.values(), "ms / image"]
    rows = [
        [n, *(f"{results[n][t]:.1f}" for t in TASKS), f"{1000 * seconds[n]:.0f}"] for n in results
    ]
    gain = [f"{results['distilled'][t] - results['baseline'][t]:+.1f}" for t in TASKS]
    return header, [*rows, ["gain by distillation", *gain, ""]]


def _write_report(
    args: argparse.Namespace, runs: List[ChildRun], table: str, seconds: float
) -> None:
    commands = "\n".join("python " + " ".join(run.command()[1:]) for run in runs)
    text = f"""# A Mask R-CNN, distilled

{table}
The two students are the same network with the same first weights, {args.iterations} iterations,
and order of images (seed {args.seed}); the distilled one learned from the teacher's feature maps as
well. One seed says little, and on another machine, which rounds otherwise, so short a training ends
elsewhere: `make study` compares several seeds, and other methods. All of it took {seconds / 60:.0f}
minutes on {cores()} cores.

![Predictions of the teacher and of both students](predictions.png)

Spatial attention (mean of absolute features) of teacher and students at one FPN level:

![Spatial attention](attention.png)

![Loss and AP over the iterations](curves.png)

Made by

```
{commands}
```
"""
    write_text(os.path.join(args.output, "report.md"), text)
