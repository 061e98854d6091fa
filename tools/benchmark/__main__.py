#!/usr/bin/env python
"""
Measure what distillation costs, each row as a ratio of two sides measured in turns in one run.
Writes OUTPUT/results.json and OUTPUT/table.md.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
from typing import Any, Dict, List, Sequence, Tuple

import peer
import torch
from cases import LEVELS, Loss, check_teacher, inputs, mask_rcnn, teacher_forward, training_step
from loader import loader_rows, startup_rows
from measure import Function, alternate, flops, machine, peak_memory, row
from scaling import scaling_rows

from skd.study.common.bench_table import MB, bench_table

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def count(measured: Function, reference: Function) -> Dict[str, int]:
    """Operations of both. They have run once after that, which is the warm-up."""
    return {"flops": flops(measured)[0], "flops_reference": flops(reference)[0]}


def loss_rows(args) -> List[Dict[str, Any]]:
    case = plain_case(args)
    counts = case.check(case.literal)
    pairs = alternate((case.fused, case.literal), args.repeats, args.device)
    return [row("loss_time", pairs, 0.5, unit="s", bytes=case.map_bytes(), **counts)]


def memory(args, which: str) -> List[float]:
    """Peak MB above the inputs, in a process of its own."""
    command = [sys.executable, "-W", "ignore", os.path.dirname(os.path.abspath(__file__))]
    command += ["--memory-of", which, "--device", args.device, "--repeats", "2"]
    command += ["--images", str(args.images), "--size", *map(str, args.size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(args) -> None:
    make, name = SIDES[args.memory_of]
    function = getattr(make(args), name)
    function()  # what libraries allocate once does not count
    print(json.dumps([peak_memory(function, args.device) / MB for _ in range(args.repeats)]))


def memory_rows(args) -> List[Dict[str, Any]]:
    literal = memory(args, "literal")
    measured, full = (list(zip(memory(args, which), literal)) for which in ("fused", "full_keys"))
    with torch.device("meta"):
        least = Loss("meta", args.images, args.size).map_bytes() / 3  # the student's gradient
    return [
        row("loss_memory", measured, 0.25, unit="MB", bytes=least),
        row("full_resolution_keys_memory", full, 1.0, unit="MB", bytes=least),
    ]


def peer_rows(args) -> List[Dict[str, Any]]:
    """Against MMRazor's FBKD, where it is installed."""
    if peer.missing():
        print(f"peer: {peer.missing()} is not installed, so its rows are left out.")
        return []
    case = peer_case(args)
    counts = case.check(case.peer)
    times = alternate((case.fused, case.peer), args.repeats, args.device)
    sides = list(zip(memory(args, "peer_fused"), memory(args, "peer")))
    return [
        row("peer_time", times, unit="s", bytes=case.map_bytes(), **counts),
        row("peer_memory", sides, unit="MB", bytes=case.map_bytes() / 3),
    ]


def peer_case(args) -> Loss:
    """The levels and the pooling of MMRazor's config."""
    return Loss(args.device, args.images, args.size, levels=peer.LEVELS, key_stride=peer.KEY_STRIDE)


def plain_case(args) -> Loss:
    return Loss(args.device, args.images, args.size)


def full_keys_case(args) -> Loss:
    """Without any pooling of keys."""
    key_stride = {stride: 1 for stride in LEVELS.values()}
    return Loss(args.device, args.images, args.size, key_stride=key_stride)


def growth_rows(args) -> List[Dict[str, Any]]:
    """The loss's time with twice the area, twice the images, all levels instead of P3 to P6."""
    height, width = (side // 2 for side in args.size)
    base = Loss(args.device, 2, (height, width))
    some = {name: stride for name, stride in LEVELS.items() if name != "p2"}
    cases = {
        "growth_area": (Loss(args.device, 2, (height, 2 * width)), base),
        "growth_batch": (Loss(args.device, 4, (height, width)), base),
        "growth_levels": (base, Loss(args.device, 2, (height, width), levels=some)),
    }
    rows = []
    for name, (large, small) in cases.items():
        counts = count(large.fused, small.fused)
        pairs = alternate((large.fused, small.fused), args.repeats, args.device)
        expected = large.map_bytes() / small.map_bytes()
        rows.append(row(name, pairs, unit="s", linear=expected, bytes=large.map_bytes(), **counts))
    return rows


def step_rows(args) -> List[Dict[str, Any]]:
    """A step against the student's and a forward of the teacher: stock, or as it is run here."""
    gpu = args.device == "cuda"
    precision = "fp16" if gpu else "fp32"
    model, baseline = mask_rcnn(args.device, precision)
    batch = inputs(args.images if gpu or args.full else 1, args.size)
    sides = (
        training_step(model, batch, gpu),
        training_step(baseline, batch, gpu),
        teacher_forward(args.device, batch, precision=precision),
        lambda: model.teacher(batch, model.input_format),
    )
    sides[0]()  # the first iteration measures gradients for BALANCE
    measured, student, plain, _ = (flops(side)[0] for side in sides)
    counts = {"flops": measured, "flops_reference": student + plain}
    # at full size on a CPU single steps spread more than anything else here
    times = alternate(sides, args.repeats + 2, args.device)
    reduced = {
        "reduced_bytes_student": 4 * sum(p.numel() for p in baseline.parameters()),
        "reduced_bytes_distiller": 4 * sum(p.numel() for p in model.distiller.parameters()),
    }
    rows = []
    for name, teacher, target in (
        ("step_mask_rcnn", 2, 1.05 if gpu else 1.1),
        ("step_over_same_teacher", 3, None),
    ):
        pairs = [(time[0], time[1] + time[teacher]) for time in times]
        rows.append(row(name, pairs, target, unit="s", **counts, **reduced))
    if gpu:
        memories = [tuple(peak_memory(side, args.device) / MB for side in sides[:2])]
        rows.append(row("step_memory", memories, unit="MB"))
    return rows


def _small(size: Sequence[int]) -> Tuple[int, ...]:
    """At most 320 x 480."""
    return tuple(min(a, b) for a, b in zip(size, (320, 480)))


def every_rows(args) -> List[Dict[str, Any]]:
    """Four steps with MODEL.DISTILLER.EVERY k, against four of the student's."""
    gpu = args.device == "cuda"
    size = args.size if gpu or args.full else _small(args.size)
    batch = inputs(args.images if gpu else 1, size)
    rows = []
    for k in (1, 2, 4):
        models = mask_rcnn(args.device, "fp16" if gpu else "fp32", every=k)
        sides = [_four(training_step(model, batch, gpu)) for model in models]
        alternate(sides, 1, args.device)  # the first iteration measures gradients for BALANCE
        pairs = alternate(sides, args.repeats, args.device)
        rows.append(row(f"step_every_{k}", pairs, unit="s"))
    return rows


def _four(step: Function) -> Function:
    return lambda: [step() for _ in range(4)]


def balance_rows(args) -> List[Dict[str, Any]]:
    """A step of which every PERIOD-th measures gradients for BALANCE, against one that does not."""
    gpu = args.device == "cuda"
    batch = inputs(args.images if gpu else 1, args.size if gpu or args.full else _small(args.size))
    model, _ = mask_rcnn(args.device, "fp16" if gpu else "fp32")
    period = model.distiller.balance.settings.period
    # the first step of all measures whatever its number
    numbers = itertools.count(period, period), itertools.count(period + 1, period)
    sides = [training_step(model, batch, gpu, iterations) for iterations in numbers]
    count, other = _mean_step([flops(side)[0] for side in sides], period)
    times = alternate(sides, 2 * args.repeats, args.device)
    pairs = [_mean_step(pair, period) for pair in times]
    return [row("balance", pairs, 1.02, unit="s", flops=count, flops_reference=other)]


def _mean_step(pair: Sequence[float], period: int) -> Tuple[float, float]:
    """Of one step in so many that measures, and others: the mean, and one of the others."""
    measuring, other = pair
    return (measuring + (period - 1) * other) / period, other


def side_stream_rows(args) -> List[Dict[str, Any]]:
    """The step with the teacher on a stream of its own, against the same without."""
    if args.device != "cuda":
        print("side_stream: needs a GPU.")
        return []
    batch = inputs(args.images, args.size)
    models = [mask_rcnn(args.device, "fp16", side_stream=beside)[0] for beside in (True, False)]
    sides = [training_step(model, batch, amp=True) for model in models]
    alternate(sides, 2, args.device)
    return [row("step_side_stream", alternate(sides, args.repeats, args.device), unit="s")]


def eval_rows(args) -> List[Dict[str, Any]]:
    models = [model.eval() for model in mask_rcnn(args.device)]
    for model in models:
        model.proposal_generator.post_nms_topk[False] = 100
    batch = inputs(1, _small(args.size))
    sides = tuple(functools.partial(model, batch) for model in models)
    with torch.no_grad():
        counts = count(*sides)
        pairs = alternate(sides, 4 * args.repeats + 3, args.device)
    return [row("eval_overhead", pairs, 1.01, unit="s", **counts)]


def teacher_rows(args) -> List[Dict[str, Any]]:
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


def compile_rows(args) -> List[Dict[str, Any]]:
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


# what memory is measured of: a case, and its method
SIDES = {
    "fused": (plain_case, "fused"),
    "literal": (plain_case, "literal"),
    "full_keys": (full_keys_case, "fused"),
    "peer_fused": (peer_case, "fused"),
    "peer": (peer_case, "peer"),
}
PARTS = {
    "loss": loss_rows,
    "memory": memory_rows,
    "peer": peer_rows,
    "growth": growth_rows,
    "step": step_rows,
    "every": every_rows,
    "balance": balance_rows,
    "side_stream": side_stream_rows,
    "eval": eval_rows,
    "teacher": teacher_rows,
    "compile": compile_rows,
    "processes": scaling_rows,
    "startup": startup_rows,
    "loader": loader_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=" ".join(__doc__.split()))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="more repeats, two images everywhere")
    parser.add_argument("--repeats", type=int, help="measured pairs a row (default: 3, full: 10)")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--output", default=os.path.join(ROOT, "output", "bench"))
    parser.add_argument("--memory-of", choices=SIDES, help="internal")
    args = parser.parse_args()
    args.repeats = args.repeats or (10 if args.full else 3)
    args.size = tuple(args.size)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    torch.set_num_threads(os.cpu_count())
    if args.memory_of:
        return memory_of(args)

    rows: List[Dict[str, Any]] = []
    record = machine(args.device)
    os.makedirs(args.output, exist_ok=True)
    for name in args.only:
        print(f"measuring {name} ...", flush=True)
        rows += PARTS[name](args)
        with open(os.path.join(args.output, "results.json"), "w") as f:
            json.dump([*rows, {"name": "machine", **record}], f, indent=1)
    table = bench_table([*rows, {"name": "machine", **record}])
    with open(os.path.join(args.output, "table.md"), "w") as f:
        f.write(table + "\n")
    print(table)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
