"""Runs that are not made again, as results of an earlier call of tools/compare.py have them."""

import os
import shlex
from functools import partial
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from ..common.result_files import RESULTS, TAKEN_FROM, Row, counted_ap, read_lines
from .design import StudyRun


def take_earlier(runs: Sequence[StudyRun], paths: Sequence[str], work: str) -> int:
    """
    Let the results of earlier calls stand for runs whose folders are not here, as on another
    machine: those that are done, and those whose training diverged. A run is the same if its
    command is, and that of the teacher it waits for, wherever their folders are. A command does not
    tell what is in the config files, nor what was the default when it ran: see
    :func:`commits_of`.

    Args:
        paths: results.jsonl files; of one run in several, the first counts.
        work: the folder of ``runs``.

    Returns:
        For how many runs one was found.

    Raises:
        ValueError: a file is not there, or has no run that counts.
    """
    for path in paths:
        rows = _counted(path)
        if not rows:
            raise ValueError(f"--earlier {path}: there is no such file, or no run in it is done.")
        for run in runs:
            if not run.known() and (run.after is None or _row_of(run.after, rows, work)):
                row = _row_of(run, rows, work)
                run.earlier = row and {TAKEN_FROM: path, **row}
    return sum(run.earlier is not None for run in runs)


def commits_of(rows: Sequence[Row]) -> List[str]:
    """This project's commits at which runs began; "unknown" for older results."""
    return sorted({commit for row in rows for commit in row.get("commits") or ["unknown"]})


def two_teachers(runs: Sequence[StudyRun]) -> List[str]:
    """
    Says of each teacher that was trained again here, to another AP than where runs were taken from,
    that its students had two teachers.
    """
    found = []
    for run in runs:
        here = run.measured().get("ap") if run.earlier and run.finished() else None
        if here and here != run.earlier["ap"]:
            key = run.earlier["metric"]
            found.append(
                f"Teacher {run.teacher} was trained again here and has {here[key]:.1f} {key}; the "
                f"one of the runs that are taken had {run.earlier['ap'][key]:.1f}."
            )
    return found


def check_none_lost(runs: Sequence[StudyRun], output: str, work: str) -> None:
    """
    Raises:
        ValueError: ``output``, where it is not the folder of the runs itself, has results of runs
            that are not done here, or that are not of this study. They would be overwritten.
    """
    path = os.path.join(output, RESULTS)
    if os.path.realpath(output) == os.path.realpath(work):
        return
    rows = _counted(path)
    found = [_row_of(run, rows, work) for run in runs if run.known()]
    kept = {row["command"] for row in found if row}
    lost = [row for row in rows if row["command"] not in kept]
    if lost:
        what = ", ".join(str(lost[0][key]) for key in ("detector", "method", "seed"))
        raise ValueError(
            f"{path} has {len(lost)} finished runs that would be overwritten, as '{what}': they "
            f"are not done in {work}, or are not of this study. Take them from it with --earlier "
            f"{path}, or choose another --output."
        )


def are_same(
    earlier: List[str], command: List[str], moved: Callable[[str], str] = lambda part: part
) -> bool:
    """
    Whether two commands are of one run. A dataset that only one of them registers is no difference:
    the other does without. So a study may go on in the folder of one that has some of its runs.

    Args:
        moved: what a path of the earlier command has become; it may also have stayed as it was.
    """
    (old, of_old), (new, of_new) = _registered(earlier), _registered(command)
    pairs = [(old, new), *((of_old[name], of_new[name]) for name in of_old.keys() & of_new.keys())]
    return all(
        len(before) == len(now) and all(y in (x, moved(x)) for x, y in zip(before, now))
        for before, now in pairs
    )


def _counted(path: str) -> List[Row]:
    """The rows of a results.jsonl that count, as :func:`counted_ap` says."""
    return [row for row in read_lines(path) if counted_ap(row) is not None]


def _row_of(run: StudyRun, rows: Sequence[Row], work: str) -> Optional[Row]:
    """The row of the same run, under the names of this study."""
    commands = [command[1:] for command in run.commands()]
    for row in rows:
        earlier = shlex.split(row["command"])[1:]
        before = _work_of(earlier, os.path.relpath(run.folder, work))
        if before is None:
            continue
        moved = partial(_moved, before, work)
        if any(are_same(earlier, command, moved) for command in commands):
            names = {key: getattr(run, key) for key in ("detector", "method", "teacher", "seed")}
            return {**row, **names}
    return None


def _work_of(command: List[str], below: str) -> Optional[str]:
    """The --work of a command, whose run has the folder ``below`` there; None if it has not."""
    folder, end = os.path.normpath(_folder(command)), os.path.join("", os.path.normpath(below))
    if folder == end:
        return "."
    return folder[: -len(end) - 1] if folder.endswith(os.sep + end) else None


def _moved(before: str, work: str, part: str) -> str:
    """A path below the earlier --work, or an option KEY=PATH, with the present one."""
    key, equals, path = part.rpartition("=")
    inside = os.path.relpath(path, before) if os.path.isabs(path) == os.path.isabs(before) else ".."
    if inside.startswith(os.pardir) or not path:
        return part
    return f"{key}{equals}{os.path.join(work, inside)}"


def _folder(command: List[str]) -> str:
    """The run's folder; "" if the command names none. LazyConfigs have KEY=VALUE."""
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
