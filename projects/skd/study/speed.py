"""What tools/speed.py does."""

import argparse
import functools
import itertools
import json
import os
import statistics
from typing import Any, Dict, List

import torch
from detectron2.data import DatasetCatalog, DatasetMapper

from ..engine.run import check_registered
from .benchmark.measure import alternate, machine
from .common.bench_table import machine_line
from .common.models import Model, load_models
from .common.result_files import make_output, write_text
from .common.tables import markdown_table, print_table

HEADER = ["model", "parameters, M", "images/s", "ms an image", "times the last one's"]


def speed(args: argparse.Namespace) -> None:
    """
    Time every model on the same images, in turns; write results.json and README.md.

    Raises:
        ValueError: the dataset is not registered.
    """
    torch.set_num_threads(args.threads or torch.get_num_threads())
    models = load_models(args)
    check_registered("--dataset", [args.dataset])
    make_output(args.output)  # not after the measurement
    records = list(itertools.islice(DatasetCatalog.get(args.dataset), args.images))
    sides = [functools.partial(run, model, _inputs(model, records)) for model in models]
    device = models[0].cfg.MODEL.DEVICE.split(":")[0]
    alternate(sides, 1, device)  # the first is slower
    times = alternate(sides, args.repeats, device)
    rows = [_row(model, times, i, len(records)) for i, model in enumerate(models)]
    last = {"name": "machine", "threads": torch.get_num_threads(), **machine(device)}
    write_text(os.path.join(args.output, "results.json"), json.dumps([*rows, last], indent=1))
    write_text(os.path.join(args.output, "README.md"), "# Speed\n\n" + speed_page([*rows, last]))
    print_table("speed", HEADER, _cells(rows))


def _inputs(model: Model, records: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Read and resized: what is timed is the model."""
    mapper = DatasetMapper(model.cfg, False)
    return [mapper(record) for record in records]


@torch.no_grad()
def run(model: Model, inputs: List[Dict[str, Any]]) -> None:
    """One image at a time, as a predictor does."""
    for x in inputs:
        model.model([x])


def _row(model: Model, times: List[Any], i: int, images: int) -> Dict[str, Any]:
    """Medians over the rounds; the ratio is that of the same round."""
    return {
        "name": model.name,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "images": images,
        "rounds": len(times),
        "seconds": statistics.median(round_[i] for round_ in times) / images,
        "ratio": statistics.median(round_[-1] / round_[i] for round_ in times),
        "min": min(round_[-1] / round_[i] for round_ in times),
        "max": max(round_[-1] / round_[i] for round_ in times),
    }


def speed_page(rows: List[Dict[str, Any]]) -> str:
    """
    Args:
        rows: the content of results.json.

    Returns:
        A table in Markdown, and on what it was measured.
    """
    own = [row for row in rows if row["name"] != "machine"]
    threads = next(row["threads"] for row in rows if row["name"] == "machine")
    return (
        f"{markdown_table(HEADER, _cells(own))}\n{own[0]['images']} images, one at a time, in "
        f"{own[0]['rounds']} rounds; reading and resizing left out. {threads} threads on "
        f"{machine_line(rows)}.\n"
    )


def _cells(rows: List[Dict[str, Any]]) -> List[List[str]]:
    return [
        [
            row["name"], f"{row['parameters'] / 1e6:.1f}", f"{1 / row['seconds']:.1f}",
            f"{1000 * row['seconds']:.0f}",
            f"{row['ratio']:.2f} ({row['min']:.2f} to {row['max']:.2f})",
        ]
        for row in rows
    ]  # fmt: skip
