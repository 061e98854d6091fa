"""What the terms of a distillation do to the student in a few iterations."""

import copy
import itertools
import statistics
from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.solver import LRMultiplier
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.optim import Optimizer

from ...config import Config
from ...config.naming import called, setting_to
from ...distillers import GradientBalance
from ...distillers.balance import split_losses
from ...distillers.gradient_norms import DETECTOR
from ...distillers.similarity import LEAST_SIDE, linear_cka, on_grid
from ...distillers.words import called as called_of
from ...engine import describe
from ...engine.run import Run
from ...modeling.features import FeatureTap, Maps, MapsError
from ...modeling.state import pairs_of, tapped_module
from ..common.trial import check_trial, settle, starting_model
from .position import Position, moved
from .verdict import Finding, Verdict

# All terms together, in norms of the detector's gradient: more drowns it, less does nothing. Of a
# balance with a larger default (dense heads) so many times as much: its share is of a running mean,
# behind which the gradient falls at first where a batch has many objects.
STRONGEST, WEAKEST = 50.0, 0.05
# How much more a map must tell of images that are moved, to say that it lies beside them.
MOVED = 1.12


def examine_training(cfg: Config, iterations: int, verdict: Verdict) -> None:
    """Add what a few iterations show to a verdict; see :func:`examine`. Nothing is written."""
    cfg = copy.deepcopy(cfg)
    settle(cfg)
    run = describe(cfg)
    check_trial(run)
    seed_all_rng(run.seed)
    model = starting_model(run)
    optimizer = run.build_optimizer(model)
    scheduler = _scheduler(run, optimizer)
    watch = _Watch(model)
    batches = run.build_train_loader()
    with EventStorage() as storage:
        # the schedule ends at max_iter
        for i, batch in enumerate(itertools.islice(batches, min(iterations, run.max_iter))):
            storage.iter = i
            try:
                losses = watch.step(batch)
            except MapsError as error:
                verdict.findings.append(Finding("levels", str(error)))
                return
            except FloatingPointError as error:
                watch.diverged = f"at iteration {i}: {error}"
                break
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
    watch.report(verdict)


def _scheduler(run: Run, optimizer: Optimizer) -> Any:
    """The scheduler as Detectron2's hook takes it; a LazyConfig gives only the multiplier."""
    scheduler = run.build_scheduler(optimizer)
    if isinstance(scheduler, ParamScheduler):
        return LRMultiplier(optimizer, scheduler, run.max_iter)
    return scheduler


class _Watch:
    """Takes a model's steps and notes what the terms do."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.observer = GradientBalance(momentum=0.0)
        self.shares: Dict[str, List[float]] = {}
        self.cosines: Dict[str, List[float]] = {}
        self.alike: Dict[str, List[float]] = {}
        self.position = Position()  # of the teacher's finest map, which has the most positions
        self.frozen = False
        self.used = False  # whether the detector's losses have had a gradient at the maps
        self.diverged = ""  # where, and what was not finite

    def step(self, inputs: List[Dict[str, Any]]) -> Dict[str, torch.Tensor]:
        seen = []
        handle = self.model.distiller.register_forward_pre_hook(lambda _, args: seen.append(args))
        try:
            with FeatureTap(tapped_module(self.model)) as tap:
                losses = self.model(inputs)
        finally:
            handle.remove()
        maps = [x for name, x in tap.features.items() if name in pairs_of(self.model)]
        own, terms = split_losses(losses)
        if not (own + sum(terms.values())).isfinite():
            raise FloatingPointError("a loss is not finite.")
        self.frozen |= not any(x.requires_grad for x in maps)
        self._gradients(own, maps, terms)
        self._maps(*seen[0][:2], inputs)
        return losses

    def _gradients(self, own: torch.Tensor, maps: List[torch.Tensor], terms) -> None:
        self.observer.begin({})
        self.observer.measure(own, maps, terms, maps)
        norms = self.observer.norms()
        self.used |= bool(norms[DETECTOR] > 0)
        for name, cosine in self.observer.cosines.items():
            self.cosines.setdefault(name, []).append(cosine.item())
            share = norms[name] / norms[DETECTOR] if norms[DETECTOR] > 0 else norms[name] * 0
            self.shares.setdefault(name, []).append(share.item())

    @torch.no_grad()
    def _maps(self, student: Maps, teacher: Maps, inputs: List[Dict[str, Any]]) -> None:
        for name, x in student.items():
            if min(x.shape[-2:]) >= LEAST_SIDE:
                alike = linear_cka(on_grid(x).double(), on_grid(teacher[name]).double())
                self.alike.setdefault(name, []).append(alike.item())
        finest, pair = next(iter(pairs_of(self.model).items()))
        for x, one in zip(teacher[finest], inputs):
            self.position.add(x, one["image"], pair.stride)

    def report(self, verdict: Verdict) -> None:
        for name, shares in self.shares.items():
            verdict.terms[name] = (statistics.median(shares), statistics.mean(self.cosines[name]))
        verdict.levels = {name: statistics.mean(seen) for name, seen in self.alike.items()}
        verdict.distilled = [pair.teacher_name for pair in pairs_of(self.model).values()]
        # the first alone: a training with one of them tells nothing of those behind it
        found = (
            self._frozen()
            or self._unused()
            or self._weight(verdict.terms)
            or self._divergence()
            or self._shift()
        )
        verdict.findings += [found] if found else []

    def _frozen(self) -> Optional[Finding]:
        if not self.frozen:
            return None
        return Finding(
            "frozen student",
            "the student's feature maps need no gradient, so it learns nothing from the teacher: "
            "see MODEL.BACKBONE.FREEZE_AT (a LazyConfig's freeze_at), or what else freezes its "
            "backbone.",
        )

    def _unused(self) -> Optional[Finding]:
        if self.used or not self.shares:
            return None
        weight = "" if self.model.distiller.balance is None else ", so every term has weight 0"
        return Finding(
            "unused maps",
            f"the detector's losses have no gradient at the student's feature maps{weight}: "
            f"{called('MODEL.STUDENT.FEATURES')} names a module whose output the detector does not "
            "use, or the detector cuts the gradient off (detach()).",
        )

    def _weight(self, terms: Dict[str, Tuple[float, float]]) -> Optional[Finding]:
        """``terms``: see :class:`Verdict`."""
        total = sum(share for share, _ in terms.values())
        balance = self.model.distiller.balance
        factor = 1.0 if balance is None else balance.share_factor
        if not terms or WEAKEST <= total <= STRONGEST * factor:
            return None
        what = "drowns the detector's" if total > 1 else "is nothing beside the detector's"
        remedy = f"{setting_to(called_of(GradientBalance, 'enabled'), True)}, or other weights"
        if balance is not None:
            share = setting_to(called_of(GradientBalance, "share"), balance.default_share)
            remedy = f"{share}, the default"
        text = f"the terms' gradient {what}: {total:.2g} times its norm. Set {remedy}."
        return Finding("weight", text)

    def _divergence(self) -> Optional[Finding]:
        if not self.diverged:
            return None
        text = f"the training diverged {self.diverged} Lower the learning rate, or clip gradients."
        return Finding("diverged", text)

    def _shift(self) -> Optional[Finding]:
        offset, factor = moved(self.position.explained())
        if not factor > MOVED:  # also where it is nan
            return None
        return Finding(
            "shifted maps",
            f"the teacher's finest map tells {factor:.2f} times as much of your images when they "
            f"are moved by {offset} positions (rows, columns): its network pads or resizes them "
            "otherwise than the student's.",
        )
