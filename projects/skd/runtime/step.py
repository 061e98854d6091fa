"""
The training step: Detectron2's, with gradient accumulation for GPUs that do not hold a whole batch,
with batches skipped whose loss or gradient is not finite, and a helpful error when memory runs out.
"""

import logging
import math
import time
from contextlib import nullcontext
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import distributed as dist
from torch import nn

from .memory import is_out_of_memory
from .optimizer_state import check_optimizer, class_name
from .plain_numbers import read_numbers, write_numbers
from .unlabelled import share_of
from .unwrap import unwrapped
from .user_errors import UserError
from .words import called

logger = logging.getLogger(__name__)

Batch = List[Dict[str, Any]]
Scalars = Dict[str, torch.Tensor]


class BatchTooLargeError(UserError):
    """Memory ran out in a training step."""


def build_trainer(
    model: nn.Module,
    data_loader,
    optimizer,
    amp: bool = False,
    accumulate: int = 1,
    skip_non_finite: int = 0,
    memory_advice: str = "",
) -> SimpleTrainer:
    """
    Detectron2's SimpleTrainer or AMPTrainer with another step.

    Args:
        model, data_loader, optimizer: as there.
        amp: whether to train in mixed precision.
        accumulate: gradient accumulation steps: each batch is taken in so many micro-batches.
        skip_non_finite: max non-finite batches to skip.
        memory_advice: what else needs less memory, for the error when it runs out.
    """
    trainer = (_AMPTrainer if amp else _Trainer)(model, data_loader, optimizer)
    trainer.accumulate = accumulate
    trainer.skip_non_finite, trainer.memory_advice = skip_non_finite, memory_advice
    return trainer


class _Step:
    """
    Takes the loader's batch in ``accumulate`` micro-batches, equal where it divides. The gradient
    is the mean over them, as it is the mean over processes in data-parallel training; these reduce
    it once, after the last micro-batch.

    All losses are copied from the device at once, after the backward, and the optimizer steps only
    if they and the gradient are finite: one step with a gradient that is not ruins all weights,
    which may go into a checkpoint before a loss shows it. (In mixed precision the scaler skips
    such steps itself.) A model with a method ``pop_metrics()`` has the scalar tensors it
    returns, by name, copied along: they are checked like losses, and written to the event storage.
    """

    accumulate = 1
    skip_non_finite = 0
    memory_advice = ""
    _skipped = 0

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        before = self._changeable() if self.skip_non_finite else None
        try:
            total = self._forward_backward(data)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BatchTooLargeError(
                _memory_words(data, self.accumulate, self.memory_advice)
            ) from error
        if total is None or self._skips_for_gradient(data):
            self._put_back(before)
            return
        self.after_backward()
        self._check_and_write(*total, data, data_time)
        scaler = getattr(self, "grad_scaler", None)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _forward_backward(self, data: Batch) -> Optional[Tuple[Scalars, Scalars]]:
        """
        The losses, with their gradients in place, and the model's metrics; None for a batch that
        is skipped.
        """
        scaler = getattr(self, "grad_scaler", None)
        total: Scalars = {}
        metrics: Scalars = {}
        self._pop_metrics()  # of a step that failed
        self.optimizer.zero_grad()
        for i in range(self.accumulate):
            last = i == self.accumulate - 1
            wait = hasattr(self.model, "no_sync") and not last
            with self.model.no_sync() if wait else nullcontext():
                micro_batch = share_of(data, i, self.accumulate)
                losses = self._losses(micro_batch, scaler is not None)
                if losses is None:
                    self.optimizer.zero_grad()
                    return None
                loss = sum(losses.values()) / self.accumulate
                (loss if scaler is None else scaler.scale(loss)).backward()
            _add(total, losses, self.accumulate)
            _add(metrics, self._pop_metrics(), self.accumulate)
        return total, metrics

    def _pop_metrics(self) -> Scalars:
        pop = getattr(unwrapped(self.model), "pop_metrics", None)
        return pop() if pop is not None else {}

    def _forward(self, micro_batch: Batch, amp: bool) -> Scalars:
        with self._autocast() if amp else nullcontext():
            losses = self.model(micro_batch)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _autocast(self) -> torch.autocast:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=self.precision)

    def _losses(self, micro_batch: Batch, amp: bool) -> Optional[Scalars]:
        if not self.skip_non_finite:
            return self._forward(micro_batch, amp)
        try:
            losses = self._forward(micro_batch, amp)
            error = _not_finite(_copy(losses), micro_batch, self.iter)
        except FloatingPointError as not_finite:  # half way: Detectron2's proposals raise it
            losses, error = None, not_finite
            _refuse_synchronized(self.model, error)
        # all processes skip the step, or none: else they would wait for each other
        if not _anywhere(error is not None):
            return losses
        if losses is not None:
            values = {**_copy(losses), **_copy(self._pop_metrics())}
            error = _not_finite(values, micro_batch, self.iter)
        self._skip(error or "Loss is not finite in another process.")
        return None

    def _skips_for_gradient(self, data: Batch) -> bool:
        """Whether the batch is skipped for its gradient, the losses being finite."""
        if not self.skip_non_finite:
            return False
        error = _not_finite(_copy(self._largest_gradient()), data, self.iter)
        if _anywhere(error is not None):
            self.optimizer.zero_grad()
            self._skip(error or "The gradient is not finite in another process.")
            return True
        return False

    def _largest_gradient(self) -> Scalars:
        """The largest gradient, named for errors; {} in mixed precision: the scaler sees to it."""
        if getattr(self, "grad_scaler", None) is not None:
            return {}
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        gradients = [g for g in gradients if g.layout is torch.strided and g.numel()]
        if not gradients:
            return {}
        if all(g.device.type == "cpu" for g in gradients):  # where the norm takes ten times as long
            largest = [torch.stack(torch.aminmax(g)).abs().max() for g in gradients]
        else:
            largest = torch._foreach_norm(gradients, math.inf)
        return {GRADIENT: torch.stack([x.float() for x in largest]).max()}

    def _skip(self, reason: Any) -> None:
        self._skipped += 1
        if self._skipped > self.skip_non_finite:
            raise FloatingPointError(
                f"{reason} {self.skip_non_finite} such batches were skipped before, as many as "
                f"{called('skip_non_finite')} allows."
            )
        logger.warning(
            f"Batch skipped, {self._skipped} of at most {self.skip_non_finite}: {reason}"
        )

    def state_dict(self) -> Dict[str, Any]:
        own = {"optimizer_class": class_name(self.optimizer), "left_out": self._skipped}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        check_optimizer(state["optimizer"], self.optimizer, state.get("optimizer_class"))
        self._skipped = state.get("left_out", 0)
        super().load_state_dict(state)

    def _changeable(self) -> Tuple[List[Tuple[torch.Tensor, torch.Tensor]], Dict[str, Any]]:
        """What a forward changes, and a copy of it: running statistics, and plain numbers."""
        return [(b, b.clone()) for b in self.model.buffers()], read_numbers(self.model)

    @torch.no_grad()
    def _put_back(self, before) -> None:
        buffers, numbers = before
        for buffer, value in buffers:
            buffer.copy_(value)
        write_numbers(self.model, numbers)

    def _check_and_write(
        self, losses: Scalars, metrics: Scalars, data: Batch, data_time: float
    ) -> None:
        """Check and write losses in one copy; Detectron2's ``write_metrics`` copies each alone."""
        values = _copy({**losses, **metrics, **self._largest_gradient()})
        error = _not_finite(values, data, self.iter)
        names = [*losses]
        if (self.iter + 1) % self.gather_metric_period == 0:
            # before the error is raised here, for process 0 to learn of it too
            everyone = comm.gather({**{k: values[k] for k in names}, "data_time": data_time})
            get_event_storage().put_scalar("rank_data_time", data_time, cur_iter=self.iter)
            if comm.is_main_process() and error is None:
                error = self._write_means(everyone, names, data)
        if error is not None:
            raise error
        for name in metrics:
            get_event_storage().put_scalar(name, values[name], cur_iter=self.iter)

    def _write_means(self, everyone, names: List[str], data: Batch) -> Optional[FloatingPointError]:
        """Means over the processes; or what is not finite in another of them."""
        means = {k: float(np.mean([x[k] for x in everyone])) for k in names}
        error = _not_finite(means, data, self.iter, "images of all processes, here")
        if error is not None:
            return error
        storage = get_event_storage()
        storage.put_scalar("data_time", max(x["data_time"] for x in everyone), cur_iter=self.iter)
        storage.put_scalar("total_loss", sum(means.values()), cur_iter=self.iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=self.iter, **means)
        return None


def _add(total: Scalars, scalars: Scalars, accumulate: int) -> None:
    for name, value in scalars.items():
        total[name] = total.get(name, 0) + value.detach() / accumulate


def _copy(scalars: Scalars) -> Dict[str, float]:
    """Scalar tensors to the host, by one copy."""
    if not scalars:
        return {}
    values = torch.stack([v.detach().float().reshape(()) for v in scalars.values()])
    return dict(zip(scalars, values.tolist()))


GRADIENT = "the largest gradient"


def _not_finite(
    values: Dict[str, float], data: Batch, iteration: int, images: str = "images"
) -> Optional[FloatingPointError]:
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return None
    named = (str(x.get("image_id", x.get("file_name", "?"))) for x in _images(data))
    names = ", ".join(named) or "without names"
    what = "The gradient" if bad[0].startswith(GRADIENT) else "Loss"
    return FloatingPointError(
        f"{what} is not finite at iteration {iteration}, {images} {names}: {'; '.join(bad)}. "
        f"The optimizer has not stepped. Lower {called('learning_rate')} or the losses' weights, "
        f"clip gradients, or skip up to {called('skip_non_finite')} such batches."
    )


def _refuse_synchronized(model: nn.Module, error: FloatingPointError) -> None:
    """
    Raise where skipping would hang: a forward has stopped half way in this process, and the
    others may be waiting for it in a synchronized norm. They end when this process does.
    """
    kinds = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    names = [n for n, m in model.named_modules() if isinstance(m, kinds)]
    if comm.get_world_size() > 1 and names:
        raise FloatingPointError(
            f"{error} The batch cannot be skipped: the forward stopped half way, and with "
            f"synchronized norms ({names[0]}) the other processes wait for it. Use norms of one "
            "process (BN, GN), or lower the learning rate."
        ) from error


class _Trainer(_Step, SimpleTrainer):
    pass


class _AMPTrainer(_Step, AMPTrainer):
    def __init__(self, model: nn.Module, data_loader, optimizer):
        # on a CPU, and so in bf16, nothing is to be scaled
        scaler = torch.amp.GradScaler("cuda", enabled=next(model.parameters()).is_cuda)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        # a run that was without mixed precision before has none; begin with a new one
        scaler = state.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state, "grad_scaler": scaler})


def _anywhere(here: bool) -> bool:
    """Whether it is so in any process."""
    if comm.get_world_size() == 1:
        return here
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(here), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _images(data: Any) -> Batch:
    """Of Detectron2's batches; a loader of the user's own may make others, which say nothing."""
    return [x for x in data if isinstance(x, dict)] if isinstance(data, (list, tuple)) else []


def _memory_words(data: Batch, accumulate: int, advice: str) -> str:
    shapes = [x["image"].shape[-2:] for x in _images(data) if hasattr(x.get("image"), "shape")]
    sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
    batch = f"batch of {len(shapes)} images of {sizes} pixels" if shapes else "batch"
    return (
        f"Memory ran out on a {batch}, with {accumulate} "
        f"gradient accumulation step{'s' if accumulate > 1 else ''}. To need less: "
        f"{called('accumulate')} takes more of these, with the same gradients; "
        f"{called('images_per_batch')} is the size of the "
        f"batch over all processes; {called('amp')} halves the maps on a GPU"
        f"{'; ' if advice else ''}{advice}. The last checkpoint is unchanged; continue with "
        "--resume."
    )
