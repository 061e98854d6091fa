"""Results in files: written whole or not at all, and read around a line that is cut off."""

import json
import os
import tempfile
from typing import Any, Dict, Iterable, List, Optional

from ...runtime.whole_files import write_whole

Row = Dict[str, Any]
RESULTS = "results.jsonl"  # a study's file, with a row for each run
BASELINE = "baseline"  # the method of runs without a teacher
TAKEN_FROM = "taken_from"  # of a row that another results.jsonl had first: its path
DIVERGED = "FloatingPointError"  # in a failed run's error, by Detectron2 and skd.runtime.step


def read_lines(path: str) -> List[Row]:
    """
    Args:
        path: of a file with a JSON object a line, like results.jsonl and metrics.json.

    Returns:
        The objects; none if there is no file. A line that is cut off, as by a full disk, or that is
        no object is left out.
    """
    if not os.path.exists(path):
        return []
    with open(path, errors="replace") as f:
        rows = [_parse(line) for line in f]
    return [row for row in rows if isinstance(row, dict)]


def read_study(folder: str, study: str) -> List[Row]:
    """
    Args:
        folder: docs/results of a checkout; study: a folder below it.

    Returns:
        The study's runs; none if it has not run.
    """
    return read_lines(os.path.join(folder, study, RESULTS))


def finished(path: str) -> List[Row]:
    """The rows of a results.jsonl that are done; none if the study was not run yet."""
    return [row for row in read_lines(path) if row.get("status") == "done"]


def counted_ap(row: Row) -> Optional[Dict[str, Any]]:
    """
    Args:
        row: of a results.jsonl.

    Returns:
        What a run counts with, as docs/results/real/PROTOCOL.md says: its AP; nothing, which is 0
        of everything, if its training diverged; None if it did not run, or was stopped by
        something else, to be run again.
    """
    if row["status"] == "done":
        return row["ap"]
    return {} if row["status"] == "failed" and DIVERGED in row.get("error", "") else None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def make_output(folder: str) -> None:
    """
    Make the folder of ``--output``, before the work for what goes there.

    Raises:
        OSError: it cannot be made, or nothing can be written there.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"--output is '{folder}'; it must be a folder to write to: {error}"
        ) from error


def write_lines(path: str, rows: Iterable[Row]) -> None:
    """Write a file with a JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def add_line(path: str, row: Row) -> None:
    """Add a row to a file, in which nothing stays of a line that is cut off."""
    write_lines(path, [*read_lines(path), row])


def write_text(path: str, text: str) -> None:
    """Write a file, whole or not at all; what is no valid text is replaced."""
    # names of files need not be valid text
    write_whole(path, lambda f: f.write(text.encode(errors="replace")))
