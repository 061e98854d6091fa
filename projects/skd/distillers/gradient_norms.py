"""
How long the gradients of losses are at a student's feature maps: measured by an extra backward pass
from the losses to the maps, in all processes together, and smoothed over the iterations.

Shape legend: T terms, L maps.
"""

import math
from typing import Dict, Iterable, List

import torch
from torch import distributed as dist
from torch import nn

DETECTOR = "detector"
# Gradients that go through fp16 do not fit into it, whose numbers lie between 6e-8 and 65504: they
# are taken of the loss times a power of 2. It is this at first, so many times smaller where it was
# too large, and after a measurement such that the whole gradient has about this norm.
FP16_SCALE, FP16_STEP, FP16_NORM = 2.0**16, 2.0**8, 2.0**8
FP16_LIMITS = 2.0**-40, 2.0**40
# Never 1: the fused losses hand out what they have saved if the gradient that comes back is 1, and
# autograd may add to it, while it is still needed for the step's own backward pass.
SCALE = 2.0


class GradientNorms(nn.Module):
    """
    Norms of the gradients of the detector's losses and of each of a distiller's terms. They are
    buffers, so that a run that resumes has them.

    Attributes:
        cosines: of each term's gradient and the detector's, scalars of the last measurement.
    """

    def __init__(self, momentum: float, per_level: bool):
        """
        Args:
            momentum: of the running means.
            per_level: keep the norm at each map; else that of all maps together.
        """
        super().__init__()
        _let_compiled_graphs_stay()
        self.momentum, self.per_level = momentum, per_level
        self.cosines: Dict[str, torch.Tensor] = {}
        self.register_buffer("scale", torch.tensor(FP16_SCALE))  # of the detector's losses
        self._half = False  # whether the last measurement went through fp16

    def norms(self) -> Dict[str, torch.Tensor]:
        """
        Smoothed norms of all levels together, scalars: of the gradient of the detector's losses, by
        the name ``DETECTOR``, and of that of each unweighted term.
        """
        return {name: torch.linalg.vector_norm(x) for name, x in self.norms_by_level().items()}

    def norms_by_level(self) -> Dict[str, torch.Tensor]:
        """The norms of :meth:`norms` at each level, (L,); without ``per_level`` of all, (1,)."""
        norms = {key: x for key, x in self._buffers.items() if key.startswith("norm_")}
        return {key.removeprefix("norm_"): x for key, x in norms.items()}

    def measure(
        self,
        detector: torch.Tensor,
        maps: List[torch.Tensor],
        totals: Dict[str, torch.Tensor],
        seen: List[torch.Tensor],
    ) -> None:
        """
        Update the norms, and the cosines of the terms' gradients with the detector's.

        Args:
            detector: the sum of its own losses, a scalar.
            maps: L feature maps (N, C, H, W) of the student, of which ``detector`` was made.
            totals: each term's sum over the levels, T scalars by name.
            seen: the L maps of which these were made: ``maps``, or others in their place.
        """
        self._half = has_fp16(maps)
        # this runs within the forward, where autocast would take products of fp32 in fp16, and the
        # squares of gradients, which are 0 there
        with torch.autocast(detector.device.type, enabled=False):
            own = self._gradients(detector, maps, self.scale)
            squares, dots = [_dot(own, own)], []
            for name, total in totals.items():
                gradients = self._gradients(total, seen, self._scale_of(name))
                squares.append(_dot(gradients, gradients))
                dots.append(_dot(gradients, own))
                del gradients  # one set of maps less in memory when the next is made
            of_levels = torch.stack(squares + dots)  # (1 + 2 T, L), so that one exchange will do
            if not self.per_level:
                of_levels = of_levels.sum(1, keepdim=True)
            values = self._over_processes(of_levels)
            # (1 + T, L), (T,)
            squares, dots = values[: len(squares)], values[len(squares) :].sum(1)
            lengths = squares.sum(1).sqrt()
            lengths_of_both = lengths[0] * lengths[1:]
            cosines = torch.where(lengths_of_both > 0, dots / lengths_of_both, 0.0)
            # one that overflowed stays as it was: the trainer stops at a number that is not finite
            self.cosines = {
                name: torch.where(cosine.isfinite(), cosine, self.cosines.get(name, 0.0))
                for name, cosine in zip(totals, cosines.float())
            }
            self._smooth(dict(zip([DETECTOR, *totals], squares.sqrt())))

    def _over_processes(self, values: torch.Tensor) -> torch.Tensor:
        return mean_over_processes(values)

    def measure_nothing(self) -> None:
        """
        Take part in the other processes' :meth:`measure` without a value, where it failed here:
        they would wait, and none of them uses what they measured.
        """
        norms = self.norms_by_level()
        nothing = torch.full((2 * len(norms) - 1, *norms[DETECTOR].shape), math.nan).double()
        lost = self._over_processes(nothing.to(self.scale.device))
        self._smooth(dict(zip(norms, lost)))

    def keep_only(self, terms: Iterable[str], levels: int) -> None:
        """
        Forget what a checkpoint has of another set of terms, or of another number of maps.

        Args:
            terms: names of those that there are.
            levels: L.
        """
        for name, norm in self.norms_by_level().items():
            if len(norm) not in (1, levels) or name not in (DETECTOR, *terms):
                del self._buffers[f"norm_{name}"]

    def _scale_of(self, name: str) -> torch.Tensor:
        """By which a loss is multiplied for gradients at fp16 maps."""
        if name == DETECTOR:
            return self.scale
        found = self._buffers.get(f"scale_{name}")
        return torch.full_like(self.scale, FP16_SCALE) if found is None else found

    def _gradients(
        self, loss: torch.Tensor, maps: List[torch.Tensor], scale: torch.Tensor
    ) -> List[torch.Tensor]:
        """d loss / d map in fp32; zeros where there is none, as for a student that is frozen."""
        wanted = [x for x in maps if x.requires_grad] if loss.requires_grad else []
        if not wanted:
            return [torch.zeros_like(x, dtype=torch.float32) for x in maps]
        # new_tensor() would copy its number to a GPU and wait for it
        scale = scale.to(loss) if self._half else torch.full_like(loss, SCALE)
        gradients = iter(
            torch.autograd.grad(
                loss, wanted, scale.expand_as(loss), retain_graph=True, allow_unused=True
            )
        )
        found = [next(gradients) if x.requires_grad else None for x in maps]
        return [
            torch.zeros_like(x, dtype=torch.float32) if g is None else g.float() / scale
            for g, x in zip(found, maps)
        ]

    def _smooth(self, norms: Dict[str, torch.Tensor]) -> None:
        """
        Update the running means. One that overflowed in any process is left out in all, and so is
        a term without a gradient, as where no object is in the images: its mean would shrink from
        measurement to measurement, and its next gradient get the weight of a tiny one.

        Args:
            norms: as :meth:`norms_by_level` has them.
        """
        for name, value in norms.items():
            finite = value.isfinite().all()
            if self._half:
                self._adapt_scale(name, torch.linalg.vector_norm(value), finite)
            norm = self._buffers.get(f"norm_{name}")
            if norm is None or norm.shape != value.shape:  # of a run with another PER_LEVEL
                self.register_buffer(f"norm_{name}", torch.where(finite, value, 0.0))
                continue
            # the first finite value replaces a zero
            smoothed = torch.where(norm > 0, norm.lerp(value, 1 - self.momentum), value)
            # with a momentum of 0 there is no mean: what a term has now is what it has
            held = self.momentum > 0 and name != DETECTOR
            taken = finite & (value > 0) if held else finite
            norm.copy_(torch.where(taken, smoothed, norm))

    def _adapt_scale(self, name: str, length: torch.Tensor, finite: torch.Tensor) -> None:
        """After a measurement at fp16 maps: for the next one. The host waits for nothing."""
        now = self._scale_of(name)
        fitting = torch.exp2(torch.log2(FP16_NORM / length.clamp_min(1e-30)).floor()).to(now)
        found = torch.where(length > 0, fitting, now)  # a loss without a gradient has any
        found = torch.where(finite, found, now / FP16_STEP).clamp(*FP16_LIMITS)
        if name != DETECTOR and f"scale_{name}" not in self._buffers:
            self.register_buffer(f"scale_{name}", found)
        else:
            now.copy_(found)  # in place: what is put back after a skipped step is this tensor

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # which terms there are is known from the first iteration on; a checkpoint knows it before
        for key in [k for k in state_dict if k.startswith(prefix + "scale_")]:
            self.register_buffer(key.removeprefix(prefix), torch.full_like(self.scale, FP16_SCALE))
        for key in [k for k in state_dict if k.startswith(prefix + "norm_")]:
            value, name = state_dict[key], key.removeprefix(prefix)
            if value.dim() == 0 and not self.per_level:  # as older checkpoints have it
                value = state_dict[key] = value.reshape(1)
            if (value.dim() == 0) or (len(value) > 1 and not self.per_level):
                state_dict.pop(key)  # of other levels than are wanted: measured anew
            elif name not in self._buffers:
                self.register_buffer(name, torch.zeros_like(value, device=self.scale.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _let_compiled_graphs_stay() -> None:
    """
    A compiled part of the student (a head, say) would write into what its forward pass has saved,
    and refuse the step's own backward pass after a measurement. That is off from here on, for what
    this process compiles later, as PyTorch's message has it; it costs memory, and changes no value.
    """
    import torch._functorch.config as config

    if hasattr(config, "donated_buffer"):  # PyTorch 2.6 and later
        config.donated_buffer = False


def has_fp16(maps: List[torch.Tensor]) -> bool:
    """
    Whether gradients go through fp16: maps are in it, or autocast is on, which takes what is behind
    maps of fp32 (as a normalization's) in fp16.
    """
    device = maps[0].device.type
    mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return mixed or any(x.dtype == torch.float16 for x in maps)


def _dot(a: List[torch.Tensor], b: List[torch.Tensor]) -> torch.Tensor:
    """Products of two sets of L maps (N, C, H, W), in fp32, level by level: (L,)."""
    # rows first, the rest in fp64: one fp32 sum over millions of products loses digits
    return torch.stack([torch.linalg.vecdot(x, y).double().sum() for x, y in zip(a, b)])


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Average, in place, numbers of the same shape in all processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
