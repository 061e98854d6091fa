"""Rows about the loss: time, memory, growth with the input, and against MMRazor's."""

from argparse import Namespace
from typing import Any, Dict, List

import torch

from ..common.bench_table import MB
from . import peer
from .cases import LEVELS, Loss
from .measure import alternate, count, in_new_process, peak_memory, row, use_all_cores


def loss_rows(args: Namespace) -> List[Dict[str, Any]]:
    """The loss's time, and its operations as on a GPU, against the released code's."""
    case = plain_case(args)
    counts = case.check(case.literal)
    pairs = alternate((case.fused, case.literal), args.repeats, args.device)
    # their number does not depend on the size, as long as an image is a chunk; two images, because
    # batch norm at P6 needs more than one position
    few = Loss(args.device, 2, (64, 64)).launches()
    return [
        row("loss_time", pairs, 0.5, unit="s", bytes=case.map_bytes(), **counts),
        row("loss_launches", [few], 1.0, unit=""),
    ]


def memory(args: Namespace, which: str) -> List[float]:
    """Peak MB above the inputs of one of :data:`SIDES`, in a process of its own."""
    return in_new_process(_memory, args, which)


def _memory(args: Namespace, which: str) -> List[float]:
    use_all_cores()
    make, name = SIDES[which]
    function = getattr(make(args), name)
    function()  # what libraries allocate once does not count
    return [peak_memory(function, args.device) / MB for _ in range(2)]


def memory_rows(args: Namespace) -> List[Dict[str, Any]]:
    """Peak memory of the loss, and of it without pooling of keys, against the released code's."""
    literal = memory(args, "literal")
    measured, full = (list(zip(memory(args, which), literal)) for which in ("fused", "full_keys"))
    with torch.device("meta"):
        least = Loss("meta", args.images, args.size).map_bytes() / 3  # the student's gradient
    return [
        row("loss_memory", measured, 0.25, unit="MB", bytes=least),
        row("full_resolution_keys_memory", full, 1.0, unit="MB", bytes=least),
    ]


def peer_rows(args: Namespace) -> List[Dict[str, Any]]:
    """Time and memory against MMRazor's FBKD, where it is installed."""
    if peer.missing():
        print(f"peer: {peer.missing()} is not installed, so its rows are left out.")
        return []
    case = peer_case(args)
    # it sums squares by torch.dist in fp32, which is off by 2e-3 on two images' P2
    counts = case.check(case.peer, rtol=5e-3)
    times = alternate((case.fused, case.peer), args.repeats, args.device)
    sides = list(zip(memory(args, "peer_fused"), memory(args, "peer")))
    return [
        row("peer_time", times, unit="s", bytes=case.map_bytes(), **counts),
        row("peer_memory", sides, unit="MB", bytes=case.map_bytes() / 3),
    ]


def peer_case(args: Namespace) -> Loss:
    """The levels and the pooling of MMRazor's config."""
    return Loss(args.device, args.images, args.size, levels=peer.LEVELS, key_stride=peer.KEY_STRIDE)


def plain_case(args: Namespace) -> Loss:
    return Loss(args.device, args.images, args.size)


def full_keys_case(args: Namespace) -> Loss:
    """The loss without any pooling of keys."""
    key_stride = {stride: 1 for stride in LEVELS.values()}
    return Loss(args.device, args.images, args.size, key_stride=key_stride)


def growth_rows(args: Namespace) -> List[Dict[str, Any]]:
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


# what memory is measured of: a case, and its method
SIDES = {
    "fused": (plain_case, "fused"),
    "literal": (plain_case, "literal"),
    "full_keys": (full_keys_case, "fused"),
    "peer_fused": (peer_case, "fused"),
    "peer": (peer_case, "peer"),
}
