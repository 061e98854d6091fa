"""
What ``make results`` does: the tables of the documents, made anew from committed results. A block
in a document begins with ``<!-- NAME: made by make results -->`` and ends with ``<!-- end -->``.
"""

import glob
import json
import os
import re
from typing import Any, Callable, Dict, List

from tabulate import tabulate

from ..runtime.whole_files import write_whole
from .common.bench_table import bench_table, machine_line

BLOCK = re.compile(r"(<!-- (\w+): made by make results -->\n).*?(<!-- end -->)", re.S)


def results(root: str) -> List[str]:
    """
    Make the blocks of all documents.

    Args:
        root: of a checkout.

    Returns:
        The documents that were changed.

    Raises:
        ValueError: a block that nothing makes.
    """
    changed = []
    for path in sorted(glob.glob(os.path.join(root, "docs", "**", "*.md"), recursive=True)):
        with open(path) as f:
            text = f.read()
        made = fill(text, root)
        if made != text:
            write_whole(path, lambda f: f.write(made.encode()))
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


def _gpu(folder: str) -> str:
    if not os.path.exists(os.path.join(folder, "gpu.json")):
        return "**It was not run yet**: no GPU was at hand."
    day = _read(folder, "gpu.json")
    parts = [[p["name"], p["status"], f"{p['seconds']:.0f}"] for p in day["parts"]]
    tests = [[t["name"], t["outcome"], f"{t['seconds']:.1f}"] for t in day["tests"]]
    tables = [tabulate(parts, ["part", "", "seconds"], tablefmt="github")]
    if tests:
        tables.append(tabulate(tests, ["test", "", "seconds"], tablefmt="github"))
    if day["rows"]:
        tables += [bench_table(day["rows"]), f"On {machine_line(day['rows'])}."]
    return "\n\n".join(tables)


MAKERS: Dict[str, Callable[[str], str]] = {"bench": _bench, "gpu": _gpu}
