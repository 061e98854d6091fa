"""What tools/doctor_table.py does: how often the doctor is right."""

import argparse
import os
import time
from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data import register_coco, register_shapes
from ...runtime.lock import acquire
from ..common.paths import find_file
from ..common.result_files import RESULTS, add_line, make_output, read_lines, write_text
from ..common.runs import ChildRun, run_all
from ..common.tables import markdown_table, print_table
from .cases import OTHERS, SHAPES, TRAINED, Case, Other, faults, sound
from .examine import examine

# of the student that others start from; the same one whatever --seed is
ITERATIONS, SEED = 300, 1000


def doctor_table(args: argparse.Namespace, command: str) -> int:
    """
    Examine what is not in ``args.output`` yet, and write the table of all.

    Returns:
        1 if a fault was missed or a sound run blamed, else 0.

    Raises:
        ValueError: --other names a dataset without classes.
        RunError: the student that others start from could not be trained.
    """
    register_shapes()
    os.makedirs(args.work, exist_ok=True)
    acquire(args.work, "--work")
    make_output(args.output)
    other = _register(args.other, args.other_teacher)
    trained = _train(args)
    torch.set_num_threads(args.threads)
    for case in [*faults(), *sound()]:
        if _lacks(case, other):
            print(f"left out, as there is no {_lacks(case, other)}: {case.name}, {case.detector}")
        elif _key(case, args.seed) not in _done(args.output):
            row = _examine(case, args, trained, other)
            add_line(os.path.join(args.output, RESULTS), row)
    return _write(args, command)


def _lacks(case: Case, other: Optional[Other]) -> str:
    """The argument without which a case cannot be examined."""
    if case.other and other is None:
        return "--other"
    return "--other-teacher" if case.teacher == OTHERS and other.teacher is None else ""


def _register(other: Optional[List[str]], teacher: Optional[List[str]]) -> Optional[Other]:
    if not other:
        return None
    register_coco(*other)
    DatasetCatalog.get(other[0])  # which sets its classes
    classes = MetadataCatalog.get(other[0]).thing_classes
    return Other(other[0], len(classes), tuple(teacher) if teacher else None)


def _train(args: argparse.Namespace) -> str:
    """The checkpoint of a small student, trained if it is not there yet."""
    folder = os.path.join(args.work, "student")
    opts = ["SEED", str(SEED), "DATASETS.TEST", "('skd_shapes_tune',)",
            "TEST.EVAL_PERIOD", "0"]  # fmt: skip
    run = ChildRun(TRAINED, find_file(f"{SHAPES}/student.yaml"), folder, ITERATIONS, opts)
    weights = os.path.join(folder, "model_final.pth")
    if not os.path.exists(weights):
        run_all([run], jobs=1, resume=True, threads=args.threads)
    return weights


def _examine(
    case: Case, args: argparse.Namespace, trained: str, other: Optional[Other]
) -> Dict[str, Any]:
    start = time.perf_counter()
    verdict = examine(
        case.config(trained, args.seed, args.split, other),
        iterations=args.iterations,
        images=args.images,
        student_weights=find_file(case.compared.replace(TRAINED, trained)),
    )
    seconds = time.perf_counter() - start
    found = [finding._asdict() for finding in verdict.findings]
    print(f"{seconds:4.0f} s  {case.name}, {case.detector}: {[f['name'] for f in found]}")
    return {
        "case": case.name,
        "planted": case.cause,
        "detector": case.detector,
        "seed": case.seed + args.seed,
        "iterations": args.iterations,
        "images": args.images,
        "findings": found,
        "right": _right(case.cause, [f["name"] for f in found]),
        "teacher_ap50": verdict.teacher,
        "student_ap50": verdict.student,
        "terms": verdict.terms,
        "alike": verdict.levels,
        "seconds": round(seconds, 1),
    }


def _right(cause: str, found: List[str]) -> bool:
    """A fault's cause is named, and before anything else; of a sound run nothing is said."""
    return found[:1] == [cause] if cause else not found


def _done(output: str) -> Dict[Any, Dict[str, Any]]:
    rows = read_lines(os.path.join(output, RESULTS))
    return {(row["case"], row["detector"], row["seed"]): row for row in rows}


def _key(case: Case, seed: int) -> Tuple[str, str, int]:
    return case.name, case.detector, case.seed + seed


def _write(args: argparse.Namespace, command: str) -> int:
    done = _done(args.output)
    keys = [_key(case, args.seed) for case in [*faults(), *sound()]]
    rows = [done[key] for key in keys if key in done]
    planted = [row for row in rows if row["planted"]]
    good = [row for row in rows if not row["planted"]]
    header = ["planted", "student", "seed", "found", "right"]
    tables = {
        f"Faults: {_count(planted)} named": (header, planted),
        f"Sound runs: {_count(good)} without a finding": (["run", *header[1:]], good),
    }
    parts = [
        f"### {title}\n\n{markdown_table(head, [_cells(row) for row in part])}\n"
        for title, (head, part) in tables.items()
    ]
    text = "".join([*parts, f"Made by\n\n    {command}\n"])
    write_text(os.path.join(args.output, "table.md"), text)
    for title, (head, part) in tables.items():
        print_table(title, head, [_cells(row) for row in part])
    return 0 if all(row["right"] for row in rows) else 1


def _count(rows: List[Dict[str, Any]]) -> str:
    return f"{sum(row['right'] for row in rows)} of {len(rows)}"


def _cells(row: Dict[str, Any]) -> List[str]:
    found = ", ".join(finding["name"] for finding in row["findings"]) or "-"
    return [row["case"], row["detector"], str(row["seed"]), found, "yes" if row["right"] else "NO"]
