"""Tables of a study, from the runs that are finished."""

import json
import math
import os
import statistics
from typing import Dict, List

from .design import BASELINE, Cell, Comparison, Study
from .runs import TASKS, markdown_table
from .statistics import interval


def table(comparison: Comparison) -> List[List[str]]:
    """Rows of method, runs, AP and their paired differences to the baseline of the same seed."""
    results: Dict[str, Dict[int, Dict[str, float]]] = {}
    teachers = {cell.teacher for cell in comparison.cells if cell.teacher}
    for cell in comparison.cells:
        name = cell.method
        if len(teachers) > 1 and cell.teacher:
            name += f", teacher {cell.teacher}"
        seeds = results.setdefault(name, {})
        row = cell.result()
        if row["status"] == "done":
            seeds[cell.seed] = row["ap"]
    plain = results.get(BASELINE, {})
    rows = []
    for name, seeds in results.items():
        row = [name, str(len(seeds))]
        for task in TASKS:
            key = f"{task}/AP"
            row.append(interval([ap[key] for ap in seeds.values() if key in ap]))
        for task in TASKS:
            key = f"{task}/AP"
            pairs = [(ap, plain[s]) for s, ap in seeds.items() if s in plain and key in ap]
            row.append(
                "" if name == BASELINE else interval([a[key] - b[key] for a, b in pairs], "+")
            )
        rows.append(row)
    return [rows[0], *sorted(rows[1:], key=_first_number, reverse=True)] if plain else rows


def _first_number(row: List[str]) -> float:
    return float(row[2].split()[0]) if row[2] != "-" else -1.0


HEADER = ["method", "seeds", *TASKS.values(), *(f"{t} - baseline's" for t in TASKS.values())]


def write_results(study: Study, output: str, command: str) -> None:
    """results.jsonl and README.md, from what is finished."""
    os.makedirs(output, exist_ok=True)
    rows = [cell.result() for cell in study.runs()]
    with open(os.path.join(output, "results.jsonl"), "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    done = [row for row in rows if row["status"] == "done"]
    lines = [
        "# Comparison of methods\n",
        f"{len(done)} of {len(rows)} runs are done. AP of the last iteration: mean and 95% "
        "confidence interval (Student's t) over the seeds, and the same of the differences to the "
        "baseline of the same seed.\n",
    ]
    teachers = [row for row in done if row["method"] == "teacher"]
    if teachers:
        cells = [
            [r["teacher"], *(f"{r['ap'].get(f'{t}/AP', 0):.1f}" for t in TASKS)] for r in teachers
        ]
        lines += ["## Teachers\n", markdown_table(["teacher", *TASKS.values()], cells)]
    for comparison in study.comparisons:
        lines += [f"## {comparison.name}\n", markdown_table(HEADER, table(comparison))]
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        lines.append("## Failed\n")
        lines += [f"- `{row['command']}`" for row in failed]
        lines.append("")
    lines.append(f"Made by\n\n```\n{command}\n```")
    with open(os.path.join(output, "README.md"), "w") as f:
        f.write("\n".join(lines) + "\n")


def mean_ap(cells: List[Cell], key: str) -> float:
    """Mean over the finished cells; nan if there is none that has it."""
    values = [c.result()["ap"].get(key) for c in cells if c.finished()]
    values = [v for v in values if v is not None]
    return statistics.mean(values) if values else math.nan
