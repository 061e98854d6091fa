"""What the terms of a distillation do to the student in a few iterations."""

import statistics
from typing import Any, Dict, List, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from ...distillers import GradientBalance
from ...distillers.balance import DETECTOR
from ...modeling.distillation import pairs_of
from ...modeling.features import FeatureTap, get_feature_module
from ...runtime.checkpoint import SafeCheckpointer
from ...runtime.loader import build_train_loader
from .similarity import Offset, shifted_cka
from .verdict import Finding, Verdict

# All terms together, in norms of the detector's gradient: more drowns it, less does nothing.
STRONGEST, WEAKEST = 50.0, 0.01
# How much more alike maps must be when one is moved, to say that it is; and how many steps, and
# positions on each side of a map, it takes to tell.
MOVED, STEPS, POSITIONS = 1.1, 3, 10


def examine_training(cfg: CfgNode, iterations: int, verdict: Verdict) -> None:
    """Add what a few iterations show to a verdict; see :func:`examine`. Nothing is written."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    seed_all_rng(max(cfg.SEED, 0))
    model = build_model(cfg).train()
    if cfg.MODEL.WEIGHTS:
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    watch = _Watch(
        model, get_feature_module(model, cfg.MODEL.STUDENT.FEATURES, "MODEL.STUDENT.FEATURES")
    )
    loader = iter(build_train_loader(cfg))
    with EventStorage() as storage:
        for storage.iter in range(iterations):
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


class _Watch:
    """Takes a model's steps and notes what the terms do."""

    def __init__(self, model: nn.Module, features: nn.Module):
        self.model, self.features = model, features
        self.observer = GradientBalance(momentum=0.0)
        self.shares: Dict[str, List[float]] = {}
        self.cosines: Dict[str, List[float]] = {}
        self.alike: Dict[str, List[Dict[Offset, float]]] = {}
        self.sides: Dict[str, int] = {}
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
        terms = {k: v for k, v in losses.items() if k.startswith("loss_distill_")}
        self.frozen |= not any(x.requires_grad for x in maps)
        self._gradients(sum(v for k, v in losses.items() if k not in terms), maps, terms)
        self._maps(*seen[0][:2])
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
    def _maps(self, student: Dict[str, torch.Tensor], teacher: Dict[str, torch.Tensor]) -> None:
        for name, x in student.items():
            if min(x.shape[-2:]) >= 3:
                self.sides[name] = min(x.shape[-2:])
                self.alike.setdefault(name, []).append(shifted_cka(x, teacher[name]))

    def report(self, verdict: Verdict) -> None:
        for name, shares in self.shares.items():
            verdict.terms[name] = (statistics.median(shares), statistics.mean(self.cosines[name]))
        alike = {n: _mean(seen) for n, seen in self.alike.items()}
        verdict.levels = {name: offsets[0, 0] for name, offsets in alike.items()}
        verdict.findings += self._findings(verdict, alike)

    def _findings(self, verdict: Verdict, alike: Dict[str, Dict[Offset, float]]) -> List[Finding]:
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
            found.append(
                Finding(
                    "weight",
                    f"the terms' gradient {what}: {total:.2g} times its norm. Set "
                    "MODEL.DISTILLER.BALANCE.ENABLED True, or other weights.",
                )
            )
            return found  # such a training tells nothing about the maps
        name = next(iter(self.alike), "")  # the finest, which has the most positions
        offset, factor = moved(self.alike.get(name, []), self.sides.get(name, 0))
        if factor > MOVED:
            found.append(
                Finding(
                    "shifted maps",
                    f"the teacher's map at '{name}' agrees with the student's {factor:.2f} times "
                    f"as well when it is moved by {offset} positions (rows, columns): one of the "
                    "two pads or resizes its images differently.",
                )
            )
        return found


def _mean(seen: List[Dict[Offset, float]]) -> Dict[Offset, float]:
    return {offset: sum(s[offset] for s in seen) / len(seen) for offset in seen[0]}


def moved(seen: List[Dict[Offset, float]], positions: int) -> Tuple[Offset, float]:
    """
    By how much one of two maps lies beside the other.

    Args:
        seen: of each step, how alike they are by offset.
        positions: on the shorter side of the maps.

    Returns:
        The offset at which they agree best, and how many times better than unmoved. (0, 0) and 1
        where the steps do not agree on it, or are too few or the maps too small to tell.
    """
    offsets = {max(step, key=step.get) for step in seen}
    if len(offsets) != 1 or len(seen) < STEPS or positions < POSITIONS:
        return (0, 0), 1.0
    (offset,) = offsets
    mean = _mean(seen)
    return offset, mean[offset] / max(mean[0, 0], 1e-12)
