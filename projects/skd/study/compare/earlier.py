"""Runs that are not made again, as results of an earlier call of tools/compare.py have them."""

import os
import shlex
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..common.result_files import TAKEN_FROM, finished
from .design import StudyRun

RESULTS = "results.jsonl"
Row = Dict[str, Any]


def take_earlier(runs: Sequence[StudyRun], paths: Sequence[str]) -> int:
    """
    Let the results of earlier calls stand for runs whose folders are not here, as on another
    machine. A run is the same if its command is, and that of the teacher it waits for, wherever
    their folders are; a command does not tell what is in the config files.

    Args:
        paths: results.jsonl files; of one run in several, the first counts.

    Returns:
        For how many runs one was found.

    Raises:
        ValueError: a file is not there, or has no finished run.
    """
    for path in paths:
        rows = finished(path)
        if not rows:
            raise ValueError(f"--earlier {path}: there is no such file, or no run in it is done.")
        for run in runs:
            if not run.done() and (run.after is None or _row_of(run.after, rows)):
                row = _row_of(run, rows)
                run.earlier = row and {TAKEN_FROM: path, **row}
    return sum(run.earlier is not None for run in runs)


def check_none_lost(runs: Sequence[StudyRun], output: str, work: str) -> None:
    """
    Raises:
        ValueError: runs are done by the results in ``output`` that are not done here, where
            ``output`` is not the folder of the runs itself. They would be overwritten.
    """
    path = os.path.join(output, RESULTS)
    if os.path.realpath(output) == os.path.realpath(work):
        return
    rows = finished(path)
    lost = [run for run in runs if not run.done() and _row_of(run, rows)]
    if lost:
        raise ValueError(
            f"{path} has {len(lost)} finished runs whose folders are not in {work}, as "
            f"'{lost[0].name}'; it would be overwritten without them. Take them from it with "
            f"--earlier {path}, or choose another --output."
        )


def are_same(earlier: List[str], command: List[str]) -> bool:
    """
    Whether two commands are of one run. A dataset that only one of them registers is no difference:
    the other does without. So a study may go on in the folder of one that has some of its runs.
    """
    (old, of_old), (new, of_new) = _registered(earlier), _registered(command)
    return old == new and all(
        of_old[name] == of_new[name] for name in of_old.keys() & of_new.keys()
    )


def _row_of(run: StudyRun, rows: Sequence[Row]) -> Optional[Row]:
    """The row of the same run, under the names of this study."""
    command = run.command()[1:]
    for row in rows:
        earlier = shlex.split(row["command"])[1:]
        if are_same(_moved(earlier, command), command):
            names = {key: getattr(run, key) for key in ("detector", "method", "teacher", "seed")}
            return {**row, **names}
    return None


def _moved(earlier: List[str], command: List[str]) -> List[str]:
    """
    The earlier command with the folders of the later: both end in detector, method and seed, and
    what is before that is --work, which a teacher's weights have too.
    """
    old, new = _folder(earlier), _folder(command)
    while old and new and os.path.basename(old) == os.path.basename(new):
        old, new = os.path.dirname(old), os.path.dirname(new)
    prefix = f"{old}{os.sep}" if old else ""
    return [
        os.path.join(new, part[len(prefix) :]) if prefix and part.startswith(prefix) else part
        for part in earlier
    ]


def _folder(command: List[str]) -> str:
    """Of the run; "" if the command names none. LazyConfigs have KEY=VALUE."""
    for part, value in zip(command, [*command[1:], ""]):
        if part == "OUTPUT_DIR":
            return value
        if part.startswith("train.output_dir="):
            return part.split("=", 1)[1]
    return ""


def _registered(command: List[str]) -> Tuple[List[str], Dict[str, List[str]]]:
    """A command without its datasets, and these: name, file and folder, by their names."""
    rest, datasets, parts = [], {}, iter(command)
    for part in parts:
        if part == "--register-coco":
            dataset = [next(parts), next(parts), next(parts)]
            datasets[dataset[0]] = dataset
        else:
            rest.append(part)
    return rest, datasets
