"""
The training step: Detectron2's, with the batch in parts for GPUs that do not hold all of it, with
batches left out whose loss is not finite, and with a helpful error when memory runs out.
"""

import logging
import time
from contextlib import nullcontext
from typing import Any, Dict, List, Optional

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import distributed as dist
from torch import nn

logger = logging.getLogger(__name__)

Batch = List[Dict[str, Any]]


class BatchTooLargeError(RuntimeError):
    """Memory ran out in a training step."""


def check_accumulate(parts: int, images_per_batch: int, key: str) -> None:
    """
    Raises:
        ValueError: a process's share of the batch cannot be split into so many equal parts.
    """
    share = images_per_batch // comm.get_world_size()
    if not isinstance(parts, int) or parts < 1 or share % parts:
        raise ValueError(
            f"{key} is {parts}, and each process gets {share} images a step: it must divide them "
            "into equal parts."
        )


def build_trainer(
    model: nn.Module,
    data_loader,
    optimizer,
    amp: bool = False,
    parts: int = 1,
    skip_non_finite: int = 0,
) -> SimpleTrainer:
    """
    Detectron2's SimpleTrainer or AMPTrainer with another step.

    Args:
        model, data_loader, optimizer: as there.
        amp: whether to train in mixed precision.
        parts: of each batch, one after the other; see ``SOLVER.ACCUMULATE``.
        skip_non_finite: batches to leave out; see ``SOLVER.SKIP_NON_FINITE``.
    """
    trainer = (_AMPTrainer if amp else _Trainer)(model, data_loader, optimizer)
    trainer.parts = parts
    trainer.skip_non_finite = skip_non_finite
    return trainer


class _Step:
    """
    Takes the loader's batch in equal parts. The gradient is the mean over the parts, as it is the
    mean over processes in data-parallel training; these reduce it once, after the last part.
    """

    parts = 1
    skip_non_finite = 0
    _skipped = 0

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        try:
            total = self._forward_backward(data)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise BatchTooLargeError(_memory_advice(data, self.parts)) from error
        if total is None:
            return
        self.after_backward()
        self._write_metrics(total, data_time)
        scaler = getattr(self, "grad_scaler", None)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _forward_backward(self, data: Batch) -> Optional[Dict[str, torch.Tensor]]:
        """The losses, with their gradients in place; None for a batch that is left out."""
        scaler = getattr(self, "grad_scaler", None)
        size = len(data) // self.parts
        total: Dict[str, torch.Tensor] = {}
        self.optimizer.zero_grad()
        for i in range(self.parts):
            last = i == self.parts - 1
            wait = hasattr(self.model, "no_sync") and not last
            with self.model.no_sync() if wait else nullcontext():
                part = data[i * size : (i + 1) * size]
                losses = self._losses(part, scaler is not None)
                if losses is None:
                    self.optimizer.zero_grad()
                    return None
                loss = sum(losses.values()) / self.parts
                (loss if scaler is None else scaler.scale(loss)).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / self.parts
        return total

    def _losses(self, part: Batch, amp: bool) -> Optional[Dict[str, torch.Tensor]]:
        precision = torch.autocast("cuda", dtype=self.precision) if amp else nullcontext()
        with precision:
            if not self.skip_non_finite:
                return self.model(part)
            try:
                losses, error = self.model(part), None
                if not torch.stack([v.detach().float() for v in losses.values()]).isfinite().all():
                    values = {name: value.item() for name, value in losses.items()}
                    error = FloatingPointError(f"Loss is not finite: {values}.")
            except FloatingPointError as not_finite:
                losses, error = None, not_finite
        # all processes leave out the step, or none: else they would wait for each other
        if not _anywhere(error is not None):
            return losses
        self._skipped += 1
        reason = error or "Loss is not finite in another process."
        if self._skipped > self.skip_non_finite:
            raise FloatingPointError(
                f"{reason} {self.skip_non_finite} such batches were left out before, as many as "
                "SOLVER.SKIP_NON_FINITE allows."
            )
        logger.warning(
            f"Batch left out, {self._skipped} of at most {self.skip_non_finite}: {reason}"
        )
        return None


class _Trainer(_Step, SimpleTrainer):
    pass


class _AMPTrainer(_Step, AMPTrainer):
    pass


def _anywhere(here: bool) -> bool:
    """Whether it is so in any process."""
    if comm.get_world_size() == 1:
        return here
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(here), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(
        w in str(error) for w in words
    )


def _memory_advice(data: Batch, parts: int) -> str:
    sizes = ", ".join("x".join(map(str, x["image"].shape[-2:])) for x in data)
    return (
        f"Memory ran out on a batch of {len(data)} images of {sizes} pixels, taken in {parts} "
        f"part{'s' if parts > 1 else ''}. To need less: SOLVER.ACCUMULATE takes the batch in "
        "(more) parts, with the same gradients; INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN "
        "shrink the images; SOLVER.IMS_PER_BATCH is the size of the batch over all processes; "
        "SOLVER.AMP.ENABLED and MODEL.TEACHER.PRECISION halve the maps on a GPU; "
        "MODEL.DISTILLER.LEVELS distils fewer levels. The last checkpoint is unchanged; continue "
        "with --resume."
    )
