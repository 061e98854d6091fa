"""
What ``make results`` does: the tables and pictures of the documents, made anew from committed
results. A block in a document begins with ``<!-- NAME: made by make results -->`` and ends with
``<!-- end -->``.
"""

import glob
import json
import os
import re
from typing import Any, Callable, Dict, List

from tabulate import tabulate

from .calibrate import calibrated_table
from .common.bench_table import bench_table, machine_line
from .common.result_files import write_text
from .common.tables import NOT_RUN
from .corrupted import draw_robustness, robustness_table
from .fewer_steps import every_table
from .gains import (
    draw_curves,
    draw_gains,
    first_default_table,
    gains_table,
    sizes_table,
    to_the_end_table,
)
from .log_pictures import draw_healthy, draw_sick
from .more_to_learn import heads_table, unlabelled_table
from .photographs import domains_table, draw_methods, methods_table, terms_table
from .pieces import draw_pieces
from .speed import speed_page
from .teachers import other_data_table, teachers_table
from .zoo import zoo_table

BLOCK = re.compile(r"(<!-- (\w+): made by make results -->\n).*?(<!-- end -->)", re.S)


def results(root: str) -> List[str]:
    """
    Make the blocks of all documents.

    Args:
        root: of a checkout.

    Returns:
        The documents and pictures that were changed.

    Raises:
        ValueError: a block that nothing makes.
    """
    changed = _pictures(os.path.join(root, "docs", "results"))
    documents = glob.glob(os.path.join(root, "docs", "**", "*.md"), recursive=True)
    for path in sorted([os.path.join(root, "README.md"), *documents]):
        with open(path) as f:
            text = f.read()
        made = fill(text, root)
        if made != text:
            write_text(path, made)
            changed.append(path)
    return changed


def fill(text: str, root: str) -> str:
    """A document with its blocks made anew."""

    def block(found: re.Match) -> str:
        begin, name, end = found.groups()
        if name not in MAKERS:
            raise ValueError(f"No results are named '{name}'; there are {', '.join(MAKERS)}.")
        return f"{begin}{MAKERS[name](os.path.join(root, 'docs', 'results'))}\n{end}"

    return BLOCK.sub(block, text)


def _read(folder: str, name: str) -> Any:
    with open(os.path.join(folder, name)) as f:
        return json.load(f)


def _bench(folder: str) -> str:
    return bench_table(_read(folder, "bench.json"))


def _bench_more(folder: str) -> str:
    return bench_table(_read(folder, "bench_more.json"))


def _speed(folder: str) -> str:
    path = os.path.join("real", "speed", "results.json")
    known = os.path.exists(os.path.join(folder, path))
    return speed_page(_read(folder, path)).rstrip() if known else NOT_RUN


def _gpu(folder: str) -> str:
    """What its benchmark measured."""
    day = _gpu_day(folder)
    rows = day["rows"]
    return f"{bench_table(rows)}\n\nOn {machine_line(rows)}." if rows else NOT_RUN


def _gpu_tests(folder: str) -> str:
    """How its parts ended, and each test."""
    day = _gpu_day(folder)
    parts = [[p["name"], p["status"], f"{p['seconds']:.0f}"] for p in day["parts"]]
    tests = [[t["name"], t["outcome"], f"{t['seconds']:.1f}"] for t in day["tests"]]
    named = (("part", parts), ("test", tests))
    tables = [
        tabulate(rows, [name, "", "seconds"], tablefmt="github") for name, rows in named if rows
    ]
    return "\n\n".join(tables) or NOT_RUN


def _gpu_day(folder: str) -> Dict[str, Any]:
    known = os.path.exists(os.path.join(folder, "gpu.json"))
    return _read(folder, "gpu.json") if known else {"parts": [], "tests": [], "rows": []}


def _pictures(folder: str) -> List[str]:
    """Draw all; returns those that changed."""
    changed = []
    for name, draw in PICTURES.items():
        path = os.path.join(folder, name)
        before = _bytes(path)
        draw(folder, path)
        changed += [path] if _bytes(path) != before else []
    return changed


def _bytes(path: str) -> bytes:
    if not os.path.exists(path):
        return b""
    with open(path, "rb") as f:
        return f.read()


def _carparts(folder: str) -> str:
    """The first table of methods of car parts, as tools/compare.py wrote it."""
    with open(os.path.join(folder, "real", "carparts", "README.md")) as f:
        text = f.read()
    return re.search(r"^\| method.*?(?=\n\n)", text, re.M | re.S).group()


MAKERS: Dict[str, Callable[[str], str]] = {
    "carparts": _carparts,
    "bench": _bench,
    "bench_more": _bench_more,
    "gpu": _gpu,
    "gpu_tests": _gpu_tests,
    "speed": _speed,
    "calibrated": calibrated_table,
    "gains": gains_table,
    "first_default": first_default_table,
    "to_the_end": to_the_end_table,
    "sizes": sizes_table,
    "teachers": teachers_table,
    "every": every_table,
    "other_data": other_data_table,
    "methods": methods_table,
    "terms": terms_table,
    "domains": domains_table,
    "unlabelled": unlabelled_table,
    "heads": heads_table,
    "robustness": robustness_table,
    "zoo": zoo_table,
}
PICTURES = {
    "gains.png": draw_gains,
    "curves.png": draw_curves,
    "real/methods.png": draw_methods,
    "real/robustness.png": draw_robustness,
    "log/healthy.png": draw_healthy,
    "log/sick.png": draw_sick,
    "pieces.png": draw_pieces,
}
