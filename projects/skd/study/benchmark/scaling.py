"""The training step in several processes: does distillation cost more when there are more?"""

import os
import tempfile
from argparse import Namespace
from typing import Any, Dict, List

import torch
from detectron2.engine import launch
from detectron2.utils import comm

from ...engine import wrap_data_parallel
from .cases import inputs, mask_rcnn, training_step
from .measure import alternate, row


def _worker(device: str, size, repeats: int, path: str) -> None:
    torch.set_num_threads(1)
    model, baseline = mask_rcnn(device)
    batch = inputs(1, size)
    step, student_step = (
        training_step(wrap_data_parallel(net, broadcast_buffers=False), batch)
        for net in (model, baseline)
    )

    def reference():
        student_step()
        model.teacher(batch, model.input_format)

    step(), reference()  # warm-up
    pairs = alternate((step, reference), repeats, device)
    if comm.is_main_process():
        torch.save(pairs, path)


def scaling_rows(args: Namespace) -> List[Dict[str, Any]]:
    """One image a process and one thread a process, over gloo on CPUs and NCCL on GPUs."""
    gpu = args.device == "cuda"
    counts = [n for n in (1, 2, 4, 8) if n <= (torch.cuda.device_count() if gpu else 4)]
    size = args.size if gpu else (128, 160)
    rows = []
    for n in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "pairs.pth")
            launch(_worker, n, dist_url="auto", args=(args.device, size, args.repeats, path))
            rows.append(row(f"step_{n}_processes", torch.load(path), unit="s"))
    return rows
