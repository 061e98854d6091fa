"""The training step in several processes: does distillation cost more when there are more?"""

import os
import tempfile
from typing import Any, Dict, List

import torch
from cases import inputs, mask_rcnn
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from measure import alternate, row

from skd.engine import wrap_data_parallel


def _worker(device: str, size, repeats: int, path: str) -> None:
    torch.set_num_threads(1)
    model = mask_rcnn(device).train()
    batch = inputs(1, size)
    sides = []
    # two wrappers of the same parameters would both reduce them: the student gets its own
    for net in (model, mask_rcnn(device).train().student):
        net = wrap_data_parallel(net, broadcast_buffers=False)
        optimizer = torch.optim.SGD(net.parameters(), 1e-6, momentum=0.9)

        def step(net=net, optimizer=optimizer):
            with EventStorage():
                losses = net(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

        sides.append(step)

    def with_teacher():
        sides[1]()
        model.teacher(batch, model.input_format)

    sides[0](), with_teacher()  # warm-up
    pairs = alternate(sides[0], with_teacher, repeats, device)
    if comm.is_main_process():
        torch.save(pairs, path)


def scaling_rows(args) -> List[Dict[str, Any]]:
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
