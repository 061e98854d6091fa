"""What tools/benchmark.py does."""

import argparse
import json
import os
from typing import Any, Dict, List

import torch

from ..common.bench_table import bench_table
from ..common.result_files import make_output, write_text
from .loader import loader_rows, startup_rows
from .loss import growth_rows, loss_rows, memory_rows, peer_rows
from .measure import machine, use_all_cores
from .methods import methods_rows
from .scaling import scaling_rows
from .step import (
    balance_rows,
    eval_rows,
    every_rows,
    half_size_rows,
    heads_rows,
    side_stream_rows,
    step_rows,
    unlabelled_rows,
)
from .teacher import compile_rows, teacher_rows

PARTS = {
    "loss": loss_rows,
    "memory": memory_rows,
    "peer": peer_rows,
    "growth": growth_rows,
    "step": step_rows,
    "every": every_rows,
    "half_size": half_size_rows,
    "heads": heads_rows,
    "unlabelled": unlabelled_rows,
    "balance": balance_rows,
    "side_stream": side_stream_rows,
    "eval": eval_rows,
    "teacher": teacher_rows,
    "compile": compile_rows,
    "methods": methods_rows,
    "processes": scaling_rows,
    "startup": startup_rows,
    "loader": loader_rows,
}


def benchmark(args: argparse.Namespace) -> None:
    """
    Args:
        args: of the command line.

    Raises:
        ValueError: there is no GPU for ``--device cuda``.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda; there is no GPU here.")
    args.repeats = args.repeats or (10 if args.full else 3)
    args.size = tuple(args.size)
    use_all_cores()
    last = {"name": "machine", **machine(args.device)}
    rows: List[Dict[str, Any]] = []
    make_output(args.output)
    for name in args.only:
        print(f"measuring {name} ...", flush=True)
        rows += PARTS[name](args)
        path = os.path.join(args.output, "results.json")
        write_text(path, json.dumps([*rows, last], indent=1))
    table = bench_table([*rows, last])
    write_text(os.path.join(args.output, "table.md"), table + "\n")
    print(table)
    print(f"written to {args.output}")
