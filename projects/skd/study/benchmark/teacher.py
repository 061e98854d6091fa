"""Rows about the teacher's forward: what each way to run it saves."""

from argparse import Namespace
from typing import Any, Dict, List

from .cases import check_teacher, inputs, teacher_forward
from .measure import alternate, count, row


def teacher_rows(args: Namespace) -> List[Dict[str, Any]]:
    """The teacher's forward with each way to make it cheaper, against the plain one."""
    gpu = args.device == "cuda"
    batch = inputs(2 if gpu else 1, args.size)
    options = {
        "teacher_folded": {"fold_bn": True},
        "teacher_channels_last": {"channels_last": True},
    }
    options["teacher_default"] = {**options["teacher_folded"], **options["teacher_channels_last"]}
    if gpu:
        options["teacher_bf16"] = {**options["teacher_default"], "precision": "bf16"}
        options["teacher_fast"] = {**options["teacher_default"], "precision": "fp16"}
    plain = teacher_forward(args.device, batch)
    rows = []
    for name, fast in options.items():
        sides = teacher_forward(args.device, batch, **fast), plain
        check_teacher(*sides)
        counts = count(*sides)
        pairs = alternate(sides, args.repeats, args.device)
        target = 0.4 if name == "teacher_fast" else None
        rows.append(row(name, pairs, target, unit="s", **counts))
    return rows


def compile_rows(args: Namespace) -> List[Dict[str, Any]]:
    """The compiled teacher against the same uncompiled."""
    if args.device != "cuda":
        print("compile: needs a GPU.")
        return []
    batch = inputs(args.images, args.size)
    fast = {"fold_bn": True, "channels_last": True, "precision": "fp16"}
    sides = [teacher_forward(args.device, batch, **fast, compile=c) for c in (True, False)]
    check_teacher(*sides)
    pairs = alternate(sides, args.repeats, args.device)
    return [row("teacher_compiled", pairs, unit="s")]
