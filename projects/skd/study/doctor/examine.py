"""
Looks at a distillation before it costs days: what its teacher finds on the student's images, and
what its terms do to the student in a few iterations.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from ...config import student_config
from ...distillers import GradientBalance
from ...distillers.balance import DETECTOR
from ...modeling.build_detector import build_detector
from ...modeling.distillation import pairs_of
from ...modeling.features import FeatureTap, get_feature_module
from ...runtime.checkpoint import SafeCheckpointer
from ...runtime.loader import build_train_loader
from .similarity import Offset, shifted_cka
from .teacher import NORMALIZATIONS, Quality, find, normalized, quality

# How much better another way to read the images must be to say that the configured one is wrong, in
# points of AP and as a factor. Detectors hardly mind swapped colors, and of the normalizations some
# are nearly the same.
BETTER_COLORS, BETTER_NORMALIZATION = (1.0, 1.03), (3.0, 1.15)
# Below this AP50 a teacher finds nothing.
NOTHING = 1.0
# A teacher should be better than its student by so many points of AP50.
WORTH_LEARNING_FROM = 4.0
# All terms together, in norms of the detector's gradient: more drowns it, less does nothing.
STRONGEST, WEAKEST = 50.0, 0.01
# How much more alike maps must be when one is moved, to say that it is; and how many steps, and
# positions on each side of a map, it takes to tell.
MOVED, STEPS, POSITIONS = 1.1, 3, 10


class Finding(NamedTuple):
    """name: the cause, in a few words. text: what was seen, and what to do."""

    name: str
    text: str


@dataclass
class Verdict:
    """
    What :func:`examine` found.

    Attributes:
        findings: what is wrong; empty if nothing is.
        teacher, student: box AP50 whatever class a box is given, 0 to 100; None if not known.
        terms: share of the detector's gradient and cosine with it, by term.
        levels: centred kernel alignment of student's and teacher's map, by level.
    """

    findings: List[Finding] = field(default_factory=list)
    teacher: Any = None
    student: Any = None
    terms: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    levels: Dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        known = [
            (n, f"{v:.1f}")
            for n, v in (("teacher", self.teacher), ("student", self.student))
            if v is not None
        ]
        if known:
            parts.append(tabulate(known, ["on your images", "AP50, any class"]))
        if self.terms:
            rows = [
                (n, f"{share:.1%}", f"{cosine:+.3f}") for n, (share, cosine) in self.terms.items()
            ]
            parts.append(tabulate(rows, ["term", "of the detector's gradient", "cosine with it"]))
        if self.levels:
            rows = [(name, f"{value:.3f}") for name, value in self.levels.items()]
            parts.append(tabulate(rows, ["level", "student and teacher alike (CKA)"]))
        words = [f"- {f.name}: {f.text}" for f in self.findings] or ["Nothing is wrong with it."]
        return "\n\n".join([*parts, "\n".join(words)])


def examine(
    cfg: CfgNode, *, iterations: int = 30, images: int = 30, student_weights: str = ""
) -> Verdict:
    """
    Args:
        cfg: a config that distils.
        iterations: to train; nothing is written.
        images: of ``DATASETS.TEST`` (or of TRAIN where there is none) to try the teacher on; 0
            leaves that out.
        student_weights: checkpoint of a student that was trained without a teacher, to compare.

    Raises:
        ValueError: the config does not distil, or cannot.
    """
    verdict = Verdict()
    if images:
        _examine_teacher(cfg, images, student_weights, verdict)
    if iterations:
        _examine_training(cfg, iterations, verdict)
    return verdict


def _examine_teacher(cfg: CfgNode, images: int, student_weights: str, verdict: Verdict) -> None:
    names = cfg.DATASETS.TEST or cfg.DATASETS.TRAIN
    records = [r for r in get_detection_dataset_dicts(names[0]) if r.get("annotations")][:images]
    mapper = DatasetMapper(cfg, is_train=False)
    inputs = [mapper(record) for record in records]
    teacher, input_format = build_detector(
        cfg.MODEL.TEACHER.CONFIG_FILE, cfg.MODEL.TEACHER.WEIGHTS, cfg.MODEL.TEACHER.OPTS,
        cfg.MODEL.TEACHER.RANDOM_WEIGHTS,
    )  # fmt: skip
    teacher = teacher.to(cfg.MODEL.DEVICE).eval()
    flip = input_format != cfg.INPUT.FORMAT

    def look(flip: bool) -> Quality:
        return quality(find(teacher, inputs, flip), records)

    as_it_is, swapped = look(flip), look(not flip)
    verdict.teacher = as_it_is.ap50
    normalizations = {}
    for name, (mean, std) in NORMALIZATIONS.items():
        with normalized(teacher, mean, std):
            normalizations[name] = look(flip)
    best = max(normalizations, key=lambda name: normalizations[name].ap)
    if _better(normalizations[best], as_it_is, BETTER_NORMALIZATION):
        verdict.findings.append(_misnormalized(best, normalizations[best], as_it_is))
    elif _better(swapped, as_it_is, BETTER_COLORS):
        verdict.findings.append(_miscolored(swapped, as_it_is, input_format))
    elif as_it_is.ap50 < NOTHING:
        verdict.findings.append(_finds_nothing(as_it_is))
    if student_weights:
        plain = build_model(student_config(cfg)).eval()
        SafeCheckpointer(plain).load(student_weights)
        verdict.student = quality(find(plain, inputs), records).ap50
        if verdict.teacher < verdict.student + WORTH_LEARNING_FROM:
            what = "not better" if verdict.teacher <= verdict.student else "hardly better"
            verdict.findings.append(
                Finding(
                    "weak teacher",
                    f"this teacher is {what} than your student: AP50 {verdict.teacher:.1f} against "
                    f"{verdict.student:.1f}. Train it longer, or choose another.",
                )
            )


def _better(other: Quality, than: Quality, margin: Tuple[float, float]) -> bool:
    points, factor = margin
    return other.ap > than.ap + points and other.ap > than.ap * factor


def _miscolored(swapped: Quality, as_it_is: Quality, input_format: str) -> Finding:
    other = "RGB" if input_format == "BGR" else "BGR"
    return Finding(
        "color order",
        f"as configured the teacher has an AP of {as_it_is.ap:.1f} on your images, and "
        f"{swapped.ap:.1f} if they are {other}: INPUT.FORMAT of its config, {input_format}, is not "
        "the order it was trained with.",
    )


def _misnormalized(name: str, other: Quality, as_it_is: Quality) -> Finding:
    mean, std = NORMALIZATIONS[name]
    return Finding(
        "normalization",
        f"as configured the teacher has an AP of {as_it_is.ap:.1f} on your images, and "
        f"{other.ap:.1f} with another normalization ({name}): set MODEL.PIXEL_MEAN {list(mean)} "
        f"and MODEL.PIXEL_STD {list(std)} in its config.",
    )


def _finds_nothing(seen: Quality) -> Finding:
    if seen.best_score > 0.5:
        return Finding(
            "other data",
            f"the teacher finds nothing on your images (AP50 {seen.ap50:.1f}), and is sure of what "
            "it finds: it was trained on other data. Train one on yours first.",
        )
    return Finding(
        "untrained teacher",
        f"the teacher finds nothing on your images (AP50 {seen.ap50:.1f}), and is sure of nothing "
        f"(its highest score is {seen.best_score:.2f}): it is untrained, or hardly trained. "
        "Check MODEL.TEACHER.WEIGHTS.",
    )


def _examine_training(cfg: CfgNode, iterations: int, verdict: Verdict) -> None:
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
