"""One optimizer step from several small batches, for GPUs that do not hold the large one."""

import time
from contextlib import nullcontext
from typing import Any, Dict, List

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import nn


def check_accumulate(parts: int, images_per_batch: int, key: str) -> None:
    """
    Raises:
        ValueError: a process's share of the batch cannot be split into so many equal parts.
    """
    share = images_per_batch // comm.get_world_size()
    if parts < 1 or share % parts:
        raise ValueError(
            f"{key} is {parts}, and each process gets {share} images a step: it must divide them "
            "into equal parts."
        )


def build_trainer(
    model: nn.Module, data_loader, optimizer, amp: bool = False, parts: int = 1
) -> SimpleTrainer:
    """
    Detectron2's SimpleTrainer or AMPTrainer, or the same with accumulation.

    Args:
        model, data_loader, optimizer: as there.
        amp: whether to train in mixed precision.
        parts: of each batch, one after the other; see ``SOLVER.ACCUMULATE``.
    """
    if parts == 1:
        return (AMPTrainer if amp else SimpleTrainer)(model, data_loader, optimizer)
    trainer = (_AccumulatingAMPTrainer if amp else _AccumulatingTrainer)(
        model, data_loader, optimizer
    )
    trainer.parts = parts
    return trainer


class _Accumulating:
    """
    Takes the loader's batch in equal parts. The gradient is the mean over the parts, as it is the
    mean over processes in data-parallel training; these reduce it once, after the last part.
    """

    parts = 1

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        scaler = getattr(self, "grad_scaler", None)
        size = len(data) // self.parts
        total: Dict[str, torch.Tensor] = {}
        self.optimizer.zero_grad()
        for i in range(self.parts):
            last = i == self.parts - 1
            wait = hasattr(self.model, "no_sync") and not last
            with self.model.no_sync() if wait else nullcontext():
                losses = self._losses(data[i * size : (i + 1) * size], scaler is not None)
                loss = sum(losses.values()) / self.parts
                (loss if scaler is None else scaler.scale(loss)).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / self.parts
        self.after_backward()
        self._write_metrics(total, data_time)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _losses(self, part: List[Dict[str, Any]], amp: bool) -> Dict[str, torch.Tensor]:
        if not amp:
            return self.model(part)
        with torch.autocast("cuda", dtype=self.precision):
            return self.model(part)


class _AccumulatingTrainer(_Accumulating, SimpleTrainer):
    pass


class _AccumulatingAMPTrainer(_Accumulating, AMPTrainer):
    pass
