"""Rows about a whole model: a training step, and inference."""

import functools
import itertools
from argparse import Namespace
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from ..common.bench_table import MB
from .cases import inputs, mask_rcnn, teacher_forward, training_step, unlabelled
from .measure import Function, alternate, count, flops, peak_memory, row

Batch = List[Dict[str, Any]]


def step_rows(args: Namespace) -> List[Dict[str, Any]]:
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


def small(size: Sequence[int]) -> Tuple[int, ...]:
    """An image size cut to 320 x 480."""
    return tuple(min(a, b) for a, b in zip(size, (320, 480)))


def images_and_size(args: Namespace) -> Tuple[int, Sequence[int]]:
    """Of a batch: on a CPU one image, and without --full a small one."""
    gpu = args.device == "cuda"
    return args.images if gpu else 1, args.size if gpu or args.full else small(args.size)


def every_rows(args: Namespace) -> List[Dict[str, Any]]:
    """Steps with MODEL.DISTILLER.EVERY k."""
    return [_four_steps(args, f"step_every_{k}", every=k) for k in (1, 2, 4)]


def half_size_rows(args: Namespace) -> List[Dict[str, Any]]:
    """Steps with MODEL.TEACHER.HALF_SIZE."""
    return [_four_steps(args, "step_half_size", half_size=True)]


def heads_rows(args: Namespace) -> List[Dict[str, Any]]:
    """Steps with MODEL.DISTILLER.HEADS."""
    return [_four_steps(args, "step_heads", heads=["RPNHead", "BoxHead", "MaskHead"])]


def unlabelled_rows(args: Namespace) -> List[Dict[str, Any]]:
    """Steps with as many images without labels as with labels."""
    return [_four_steps(args, "step_unlabelled", more=unlabelled)]


def _four_steps(
    args: Namespace, name: str, more: Callable[[Batch], Batch] = lambda batch: [], **options: Any
) -> Dict[str, Any]:
    """
    A row: four steps of a model with these options, against four of the student's.

    Args:
        more: of a batch, what the model gets besides.
    """
    gpu, batch = args.device == "cuda", inputs(*images_and_size(args))
    models = mask_rcnn(args.device, "fp16" if gpu else "fp32", **options)
    batches = [*batch, *more(batch)], batch
    sides = [_four(training_step(m, b, gpu)) for m, b in zip(models, batches)]
    alternate(sides, 1, args.device)  # the first iteration measures gradients for BALANCE
    return row(name, alternate(sides, args.repeats, args.device), unit="s")


def _four(step: Function) -> Function:
    return lambda: [step() for _ in range(4)]


def balance_rows(args: Namespace) -> List[Dict[str, Any]]:
    """A step of which every PERIOD-th measures gradients for BALANCE, against one that does not."""
    gpu, batch = args.device == "cuda", inputs(*images_and_size(args))
    model, _ = mask_rcnn(args.device, "fp16" if gpu else "fp32")
    period = model.distiller.balance.settings.period
    # the first step of all measures whatever its number
    numbers = itertools.count(period, period), itertools.count(period + 1, period)
    sides = [training_step(model, batch, gpu, iterations) for iterations in numbers]
    own, other = _mean_step([flops(side)[0] for side in sides], period)
    times = alternate(sides, 2 * args.repeats, args.device)
    pairs = [_mean_step(pair, period) for pair in times]
    return [row("balance", pairs, 1.02, unit="s", flops=own, flops_reference=other)]


def _mean_step(pair: Sequence[float], period: int) -> Tuple[float, float]:
    """The mean over a period in which one step measures, and a step that does not."""
    measuring, other = pair
    return (measuring + (period - 1) * other) / period, other


def side_stream_rows(args: Namespace) -> List[Dict[str, Any]]:
    """The step with the teacher on a stream of its own, against the same without."""
    if args.device != "cuda":
        print("side_stream: needs a GPU.")
        return []
    batch = inputs(args.images, args.size)
    models = [mask_rcnn(args.device, "fp16", side_stream=beside)[0] for beside in (True, False)]
    sides = [training_step(model, batch, amp=True) for model in models]
    alternate(sides, 2, args.device)
    return [row("step_side_stream", alternate(sides, args.repeats, args.device), unit="s")]


def eval_rows(args: Namespace) -> List[Dict[str, Any]]:
    """A forward in eval mode, against the student's by itself: nothing comes on top."""
    models = [model.eval() for model in mask_rcnn(args.device)]
    for model in models:
        model.proposal_generator.post_nms_topk[False] = 100
    batch = inputs(1, small(args.size))
    sides = tuple(functools.partial(model, batch) for model in models)
    with torch.no_grad():
        counts = count(*sides)
        pairs = alternate(sides, 4 * args.repeats + 3, args.device)
    return [row("eval_overhead", pairs, 1.01, unit="s", **counts)]
