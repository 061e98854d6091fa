#!/usr/bin/env python
"""
The demo over several seeds: is the distilled student better than the same student alone, and by
how much? A seed sets the first weights, the order of images and the sampling of both. Finished runs
are kept, so an interrupted study goes on where it stopped.
"""

import argparse
import json
import os
from typing import Dict, List

from demo import ITERATIONS, TEACHER
from intervals import T95, interval
from runs import CONFIGS, ROOT, TASKS, Run, markdown_table, print_table, read_ap, run_all

STUDENTS = {"baseline": "student.yaml", "distilled": "skd_student.yaml"}


def summary(teacher: Dict[str, float], students: Dict[str, List[Dict[str, float]]]):
    """Rows of the table: teacher, students, and the paired difference between the students."""
    rows = [["teacher", *(f"{teacher[t]:.1f}" for t in TASKS)]]
    for name, results in students.items():
        rows.append([name, *(interval([r[t] for r in results]) for t in TASKS)])
    pairs = list(zip(students["distilled"], students["baseline"]))
    rows.append(["difference, paired", *(interval([d[t] - b[t] for d, b in pairs]) for t in TASKS)])
    return rows


def main():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--work", default=os.path.join("output", "study"), help="the runs' folders")
    parser.add_argument("--output", default=os.path.join("docs", "results", "shapes_mask_rcnn"))
    args = parser.parse_args()
    os.chdir(ROOT)
    if not 1 <= len(args.seeds) < len(T95):
        parser.error(f"give 1 to {len(T95) - 1} seeds")

    runs = [
        Run(
            "teacher",
            f"{CONFIGS}/teacher.yaml",
            f"{args.work}/teacher",
            0,
            ["MODEL.WEIGHTS", TEACHER],
        )
    ]
    for seed in args.seeds:
        for name, config in STUDENTS.items():
            folder = f"{args.work}/{name}_{seed}"
            opts = ["SEED", str(seed)]
            runs.append(Run(f"{name} {seed}", f"{CONFIGS}/{config}", folder, args.iterations, opts))
    waiting = [run for run in runs if not run.finished()]
    if waiting:
        run_all(waiting)

    teacher = read_ap(runs[0].folder)
    students = {
        name: [read_ap(f"{args.work}/{name}_{seed}") for seed in args.seeds] for name in STUDENTS
    }
    rows = summary(teacher, students)
    header = ["model", *TASKS.values()]
    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "results.json"), "w") as f:
        content = {
            "seeds": args.seeds,
            "iterations": args.iterations,
            "teacher": teacher,
            **students,
        }
        f.write(json.dumps(content, indent=2) + "\n")
    with open(os.path.join(args.output, "metrics.jsonl"), "w") as f:
        for run in runs:
            for row in run.rows():
                f.write(json.dumps({"run": run.name, **_rounded(row)}) + "\n")
    with open(os.path.join(args.output, "README.md"), "w") as f:
        seeds = " ".join(map(str, args.seeds))
        f.write(
            "# Mask R-CNN on the built-in data set\n\n"
            f"AP on `skd_shapes_val`, {len(args.seeds)} seeds, {args.iterations} iterations each: "
            "mean and 95% confidence interval (Student's t).\n\n"
            + markdown_table(header, rows)
            + "\nAll AP are in `results.json`, the trainers' logs in `metrics.jsonl`. Made by\n"
            f"\n```\npython tools/study.py --seeds {seeds} --iterations {args.iterations}\n```\n"
        )
    print_table(f"{len(args.seeds)} seeds, mean and 95% interval", header, rows)


def _rounded(row: Dict) -> Dict:
    """Losses and AP of a row of metrics.json, to four digits."""
    keep = ("loss", "AP", "iteration", "lr")
    return {
        k: float(f"{v:.4g}") if isinstance(v, float) else v
        for k, v in row.items()
        if any(word in k for word in keep) and "per_class" not in k and "AP-" not in k
    }


if __name__ == "__main__":
    main()
