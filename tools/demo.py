#!/usr/bin/env python
"""
Distil a small Mask R-CNN from a larger one on the built-in data set, next to the same student
alone, and show with numbers and pictures what it changed. Everything goes to output/demo.
"""

import argparse
import json
import os
import shutil

from skd.study import pictures
from skd.study.runs import CONFIGS, ROOT, TASKS, Run, markdown_table, print_table, read_ap, run_all

TEACHER = os.path.join(CONFIGS, "teacher.pth")
ITERATIONS = 800
MODELS = ("teacher", "baseline", "distilled")
FILES = ("results.json", "report.md", "attention.png", "predictions.png", "curves.png")


def main():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split()))
    parser.add_argument("--output", default=os.path.join("output", "demo"))
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of each student")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("opts", nargs="*", help="further config options, KEY VALUE ...")
    args = parser.parse_args()
    os.chdir(ROOT)
    others = set(os.listdir(args.output)) - {*MODELS, *FILES} if os.path.exists(args.output) else {}
    if others:
        parser.error(f"{args.output} holds more than a demo ({min(others)}): name another folder")
    shutil.rmtree(args.output, ignore_errors=True)  # an earlier demo's curves would mix in

    students = ["SEED", str(args.seed), *args.opts]
    folder = {name: os.path.join(args.output, name) for name in MODELS}
    runs = [
        Run(
            "distilled",
            f"{CONFIGS}/skd_student.yaml",
            folder["distilled"],
            args.iterations,
            students,
        ),
        Run("baseline", f"{CONFIGS}/student.yaml", folder["baseline"], args.iterations, students),
        # trained already, so only evaluated
        Run("teacher", f"{CONFIGS}/teacher.yaml", folder["teacher"], 0, ["MODEL.WEIGHTS", TEACHER]),
    ]
    print(
        "Training the student alone and distilled, each on its share of the cores ...", flush=True
    )
    run_all(runs)
    shutil.copy(TEACHER, os.path.join(folder["teacher"], "model_final.pth"))

    results = {name: read_ap(path) for name, path in folder.items()}
    with open(os.path.join(args.output, "results.json"), "w") as f:
        f.write(json.dumps(results, indent=2) + "\n")
    print("Drawing pictures ...", flush=True)
    pictures.draw_all(args.output, folder)

    header = ["model", *TASKS.values()]
    rows = [[n, *(f"{results[n][t]:.1f}" for t in TASKS)] for n in results]
    gain = [f"{results['distilled'][t] - results['baseline'][t]:+.1f}" for t in TASKS]
    rows.append(["gain by distillation", *gain])
    write_report(args, runs, markdown_table(header, rows))
    print(f"Everything is in {args.output}; start with report.md.")
    print_table("Built-in data set, validation split", header, rows)


def write_report(args, runs, table: str) -> None:
    commands = "\n".join("python " + " ".join(run.command()[1:]) for run in runs)
    with open(os.path.join(args.output, "report.md"), "w") as f:
        f.write(f"""# A Mask R-CNN, distilled

{table}
The two students are the same network with the same first weights, {args.iterations} iterations,
and order of images (seed {args.seed}); the distilled one learned from the teacher's feature maps as
well. One seed says little: `make study` compares several, and other methods.

![Predictions of the teacher and of both students](predictions.png)

Spatial attention (mean of absolute features) of teacher and students at one FPN level:

![Spatial attention](attention.png)

![Loss and AP over the iterations](curves.png)

Made by

```
{commands}
```
""")


if __name__ == "__main__":
    main()
