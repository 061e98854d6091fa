"""What tools/demo.py does."""

import argparse
import json
import os
import shutil
import time
from typing import List

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
    others = set(os.listdir(args.output)) - {*MODELS, *FILES} if os.path.exists(args.output) else {}
    if others:
        raise ValueError(
            f"{args.output} holds more than a demo ({min(others)}): name another folder"
        )
    shutil.rmtree(args.output, ignore_errors=True)  # an earlier demo's curves would mix in

    students = ["SEED", str(args.seed), *args.opts]
    folder = {name: os.path.join(args.output, name) for name in MODELS}
    teacher, weights = find_file(f"{CONFIGS}/teacher.yaml"), find_file(f"{CONFIGS}/teacher.pth")
    # as flags, because a config's paths are the checkout's
    flags = ["--teacher", teacher, "--teacher-weights", weights]
    student, given = find_file(f"{CONFIGS}/student.yaml"), {"baseline": [], "distilled": flags}
    runs = [
        ChildRun(name, student, folder[name], args.iterations, students, more)
        for name, more in reversed(given.items())
    ]
    # trained already, so only evaluated
    runs.append(ChildRun("teacher", teacher, folder["teacher"], 0, ["MODEL.WEIGHTS", weights]))
    print("Training the baseline and the distilled student side by side ...", flush=True)
    run_all(runs, jobs=min(len(runs), cores()))
    shutil.copy(weights, os.path.join(folder["teacher"], "model_final.pth"))

    results = {name: read_ap(path) for name, path in folder.items()}
    path = os.path.join(args.output, "results.json")
    write_text(path, json.dumps(results, indent=2) + "\n")
    print("Drawing pictures ...", flush=True)
    register_shapes()
    seconds = pictures.draw_all(args.output, folder)

    header = ["model", *TASKS.values(), "ms / image"]
    rows = [
        [n, *(f"{results[n][t]:.1f}" for t in TASKS), f"{1000 * seconds[n]:.0f}"] for n in results
    ]
    gain = [f"{results['distilled'][t] - results['baseline'][t]:+.1f}" for t in TASKS]
    rows.append(["gain by distillation", *gain, ""])
    _write_report(args, runs, markdown_table(header, rows), time.monotonic() - start)
    print(f"Everything is in {args.output}; start with report.md.")
    print_table("Built-in dataset, validation split", header, rows)


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
