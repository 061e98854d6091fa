"""Rows about every method: its training step against the student's own."""

from argparse import Namespace
from typing import Any, Dict, List, Sequence

from torch import nn

from ..common.bench_table import MB
from ..common.methods import methods_named
from .cases import inputs, mask_rcnn, training_step
from .measure import Function, alternate, in_new_process, peak_memory, row
from .step import images_and_size


def methods_rows(args: Namespace) -> List[Dict[str, Any]]:
    """
    Time and memory of a step with each method, the teacher's forward in it, against the student's
    by itself. Memory is above what stays from step to step, each side in a process of its own.
    """
    given = images_and_size(args)
    baseline = in_new_process(step_memory, "", args.device, *given)
    rows = []
    for method in methods_named(["all"]):
        models = mask_rcnn(args.device, method=method)
        sides = [_second_step(model, *given) for model in models]
        times = alternate(sides, args.repeats, args.device)
        rows.append(row(f"step_{method}", times, unit="s"))
        memory = in_new_process(step_memory, method, args.device, *given)
        rows.append(row(f"step_memory_{method}", [(memory, baseline)], unit="MB"))
    return rows


def step_memory(method: str, device: str, images: int, size: Sequence[int]) -> float:
    """MB of a step with a method; of the student's by itself for ""."""
    models = mask_rcnn(device, method=method) if method else mask_rcnn(device)[::-1]
    return peak_memory(_second_step(models[0], images, size), device) / MB


def _second_step(model: nn.Module, images: int, size: Sequence[int]) -> Function:
    """The first one measures gradients for BALANCE, and makes what stays."""
    step = training_step(model, inputs(images, size))
    step()
    return step
