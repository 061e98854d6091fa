"""What the terms of a distillation do to the student in a few iterations."""

import statistics
from typing import Any, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from ...distillers import GradientBalance
from ...distillers.balance import BalanceSettings, split_losses
from ...distillers.gradient_norms import DETECTOR
from ...distillers.similarity import LEAST_SIDE, linear_cka
from ...engine.schedule import build_scheduler
from ...engine.weights import RunCheckpointer
from ...modeling.features import FeatureTap, Maps
from ...modeling.state import pairs_of
from ...runtime.loader import build_train_loader
from .position import Position, moved
from .verdict import Finding, Verdict

# All terms together, in norms of the detector's gradient: more drowns it, less does nothing.
STRONGEST, WEAKEST = 50.0, 0.05
# How much more a map must tell of images that are moved, to say that it lies beside them.
MOVED = 1.12


def examine_training(cfg: CfgNode, iterations: int, verdict: Verdict) -> None:
    """Add what a few iterations show to a verdict; see :func:`examine`. Nothing is written."""
    cfg = _steady(cfg)
    seed_all_rng(max(cfg.SEED, 0))
    model = build_model(cfg).train()
    if cfg.MODEL.WEIGHTS:
        RunCheckpointer(model, key="MODEL.WEIGHTS").load(cfg.MODEL.WEIGHTS)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    watch = _Watch(model, model.get_submodule(cfg.MODEL.STUDENT.FEATURES))
    loader = iter(build_train_loader(cfg))
    with EventStorage() as storage:
        for storage.iter in range(min(iterations, cfg.SOLVER.MAX_ITER)):  # the schedule ends there
            try:
                losses = watch.step(next(loader))
            except ValueError as error:
                verdict.findings.append(Finding("levels", str(error)))
                return
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
    watch.report(verdict)


def _steady(cfg: CfgNode) -> CfgNode:
    """Every iteration is one as between the warm-up and the end of the teacher: there are few."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DISTILLER.EVERY = 1  # with more, those that distil pull so many times as hard
    balance, defaults = cfg.MODEL.DISTILLER.BALANCE, BalanceSettings.node()
    for key in ("WARMUP", "RAMP", "DECAY"):
        balance[key] = defaults[key]
    balance.UNTIL = 1.0
    return cfg


class _Watch:
    """Takes a model's steps and notes what the terms do."""

    def __init__(self, model: nn.Module, features: nn.Module):
        self.model, self.features = model, features
        self.observer = GradientBalance(momentum=0.0)
        self.shares: Dict[str, List[float]] = {}
        self.cosines: Dict[str, List[float]] = {}
        self.alike: Dict[str, List[float]] = {}
        self.position = Position()  # of the teacher's finest map, which has the most positions
        self.frozen = False

    def step(self, inputs: List[Dict[str, Any]]) -> Dict[str, torch.Tensor]:
        seen = []
        handle = self.model.distiller.register_forward_pre_hook(lambda _, args: seen.append(args))
        try:
            with FeatureTap(self.features) as tap:
                losses = self.model(inputs)
        finally:
            handle.remove()
        maps = [x for name, x in tap.features.items() if name in pairs_of(self.model)]
        own, terms = split_losses(losses)
        self.frozen |= not any(x.requires_grad for x in maps)
        self._gradients(own, maps, terms)
        self._maps(*seen[0][:2], inputs)
        return losses

    def _gradients(self, own: torch.Tensor, maps: List[torch.Tensor], terms) -> None:
        self.observer.begin({})
        self.observer.measure(own, maps, terms, maps)
        norms = self.observer.norms()
        for name, cosine in self.observer.cosines.items():
            self.cosines.setdefault(name, []).append(cosine.item())
            share = norms[name] / norms[DETECTOR] if norms[DETECTOR] > 0 else norms[name] * 0
            self.shares.setdefault(name, []).append(share.item())

    @torch.no_grad()
    def _maps(self, student: Maps, teacher: Maps, inputs: List[Dict[str, Any]]) -> None:
        for name, x in student.items():
            if min(x.shape[-2:]) >= LEAST_SIDE:
                alike = linear_cka(x.double(), teacher[name].double())
                self.alike.setdefault(name, []).append(alike.item())
        finest, pair = next(iter(pairs_of(self.model).items()))
        for x, one in zip(teacher[finest], inputs):
            self.position.add(x, one["image"], pair.stride)

    def report(self, verdict: Verdict) -> None:
        for name, shares in self.shares.items():
            verdict.terms[name] = (statistics.median(shares), statistics.mean(self.cosines[name]))
        verdict.levels = {name: statistics.mean(seen) for name, seen in self.alike.items()}
        verdict.findings += self._findings(verdict)

    def _findings(self, verdict: Verdict) -> List[Finding]:
        if self.frozen:
            return [
                Finding(
                    "frozen student",
                    "the student's feature maps need no gradient, so it learns nothing from the "
                    "teacher: see MODEL.BACKBONE.FREEZE_AT, or what else freezes its backbone.",
                )
            ]
        found = []
        total = sum(share for share, _ in verdict.terms.values())
        if not WEAKEST <= total <= STRONGEST:
            what = "drowns the detector's" if total > 1 else "is nothing beside the detector's"
            balanced = self.model.distiller.balance is not None
            remedy = "SHARE 3.0, the default" if balanced else "ENABLED True, or other weights"
            found.append(
                Finding(
                    "weight",
                    f"the terms' gradient {what}: {total:.2g} times its norm. Set "
                    f"MODEL.DISTILLER.BALANCE.{remedy}.",
                )
            )
            return found  # such a training tells nothing about the maps
        offset, factor = moved(self.position.explained())
        if factor > MOVED:
            found.append(
                Finding(
                    "shifted maps",
                    f"the teacher's finest map tells {factor:.2f} times as much of your images "
                    f"when they are moved by {offset} positions (rows, columns): its network pads "
                    "or resizes them otherwise than the student's.",
                )
            )
        return found
