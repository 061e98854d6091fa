#!/usr/bin/env python
"""
How much of a detector's AP is left on corrupted images? The fifteen corruptions at five severities
of Michaelis et al. (2019), for several models side by side: AP for each, mPC (mean performance
under corruption) and rPC (mPC as a share of the AP on clean images), for boxes and masks.

    python tools/robustness.py --model baseline CONFIG WEIGHTS --model distilled CONFIG WEIGHTS

Finished evaluations are kept in results.jsonl: repeat the command after an interruption.
"""

import argparse
import json
import os
from typing import Any, Dict, List, Optional

import matplotlib
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from rich.progress import track

from skd.evaluation import CORRUPTIONS, CorruptedMapper, build_evaluator, mean_performance
from skd.evaluation.robustness import SEVERITIES
from skd.study.models import Model, add_arguments, load_models
from skd.study.runs import TASKS, markdown_table, print_table

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

Row = Dict[str, Any]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--dataset", help="registered data set (default: the config's test set)")
    parser.add_argument("--corruptions", nargs="+", default=CORRUPTIONS, choices=CORRUPTIONS)
    parser.add_argument("--severities", nargs="+", type=int, default=SEVERITIES, choices=SEVERITIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="of the loader; they do the work")
    parser.add_argument("--output", default=os.path.join("output", "robustness"))
    args = parser.parse_args()
    models = load_models(args)
    os.makedirs(args.output, exist_ok=True)
    path = os.path.join(args.output, "results.jsonl")
    rows = read_rows(path)
    conditions = [(None, 0)] + [(c, s) for c in args.corruptions for s in args.severities]
    waiting = []
    for name, config, weights in args.model:
        for corruption, severity in conditions:
            key = {
                "model": name, "config": config, "weights": weights, "opts": args.opts,
                "dataset": args.dataset, "seed": args.seed,
                "corruption": corruption, "severity": severity,
            }  # fmt: skip
            if not any(row.items() >= key.items() for row in rows):
                waiting.append(key)
    by_name = {model.name: model for model in models}
    for key in track(waiting, "evaluating", disable=not waiting):
        row = {**key, "ap": evaluate(by_name[key["model"]], key, args)}
        rows.append(row)
        with open(path, "a") as f:  # each evaluation is kept as soon as it is done
            f.write(json.dumps(row) + "\n")
    wanted = {(name, *c) for name in by_name for c in conditions}
    rows = [r for r in rows if (r["model"], r["corruption"], r["severity"]) in wanted]
    report(rows, list(by_name), args)


def read_rows(path: str) -> List[Row]:
    """What was evaluated before; a line cut off by an interruption is dropped from the file."""
    if not os.path.exists(path):
        return []
    rows, good = [], []
    with open(path) as f:
        for line in f:
            try:
                rows.append(json.loads(line))
                good.append(line)
            except json.JSONDecodeError:
                continue
    with open(path, "w") as f:
        f.writelines(line.rstrip("\n") + "\n" for line in good)
    return rows


def evaluate(model: Model, key: Row, args: argparse.Namespace) -> Dict[str, float]:
    """AP by task, 0 to 100."""
    dataset = args.dataset or model.cfg.DATASETS.TEST[0]
    mapper = None
    if key["corruption"]:
        mapper = CorruptedMapper(model.cfg, key["corruption"], key["severity"], args.seed)
    loader = build_detection_test_loader(
        model.cfg, dataset, mapper=mapper, num_workers=args.workers
    )
    results = inference_on_dataset(model.model, loader, build_evaluator(dataset, args.output))
    return {task: results[task]["AP"] for task in TASKS if task in results}


def tabulate(rows: List[Row], names: List[str]) -> List[List[str]]:
    """For each task and model: clean AP, mPC, rPC."""
    table = []
    for task, title in TASKS.items():
        for name in names:
            clean, corrupted = _select(rows, name, task)
            if clean is None or not corrupted:
                continue
            means = mean_performance(clean, corrupted)
            table.append([f"{name}, {title}", *(f"{v:.1f}" for v in (clean, *means.values()))])
    return table


def _select(rows: List[Row], name: str, task: str):
    clean: Optional[float] = None
    corrupted: Dict[str, Dict[int, float]] = {}
    for row in rows:
        if row["model"] == name and task in row["ap"]:
            if row["corruption"] is None:
                clean = row["ap"][task]
            else:
                corrupted.setdefault(row["corruption"], {})[row["severity"]] = row["ap"][task]
    return clean, corrupted


def report(rows: List[Row], names: List[str], args: argparse.Namespace) -> None:
    header = ["model", "clean AP", "mPC", "rPC"]
    table = tabulate(rows, names)
    lines = ["# Robustness against image corruptions\n", markdown_table(header, table)]
    for task, title in TASKS.items():
        selected = {name: _select(rows, name, task)[1] for name in names}
        if not all(selected.values()):
            continue
        means = [
            [c, *(f"{sum(s[c].values()) / len(s[c]):.1f}" for s in selected.values())]
            for c in args.corruptions
        ]
        lines += [
            f"## {title}, mean over severities {' '.join(map(str, args.severities))}\n",
            markdown_table(["corruption", *names], means),
        ]
        draw(os.path.join(args.output, f"{task}.png"), selected, rows, task)
        lines.append(f"![{title} by severity]({task}.png)\n")
    with open(os.path.join(args.output, "README.md"), "w") as f:
        f.write("\n".join(lines))
    print_table("mean performance under corruption", header, table)


def draw(path: str, selected: Dict[str, Dict], rows: List[Row], task: str) -> None:
    """AP over severity, a panel for each corruption."""
    corruptions = list(next(iter(selected.values())))
    columns = min(5, len(corruptions))
    lines = -(-len(corruptions) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 2.2 * lines), squeeze=False, sharey=True
    )
    for ax in axes.flat[len(corruptions) :]:
        ax.axis("off")
    for ax, corruption in zip(axes.flat, corruptions):
        for name, by in selected.items():
            clean, _ = _select(rows, name, task)
            points = {0: clean, **dict(sorted(by[corruption].items()))}
            ax.plot(list(points), list(points.values()), "o-", markersize=3, label=name)
        ax.set_title(corruption.replace("_", " "), fontsize=9)
        ax.set_ylim(0, None)
        ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    fig.supxlabel("severity", fontsize=9)
    fig.supylabel(TASKS[task], fontsize=9)
    fig.tight_layout()
    fig.savefig(path, dpi=90)
    plt.close(fig)


if __name__ == "__main__":
    main()
