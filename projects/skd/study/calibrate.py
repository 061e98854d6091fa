"""What tools/calibrate.py does."""

import argparse
import itertools
import os
from typing import Any, Dict, List, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from torch import nn

from ..config import Config, distill, form_of, read_config
from ..config.lazy_config import allow
from ..distillers import DISTILLER_REGISTRY, GradientBalance
from ..distillers.balance import split_losses
from ..engine import describe
from ..modeling.load import DISTILLER_PREFIX
from .common.command import set_up
from .common.methods import check_not_combined, methods_named
from .common.paths import find_file
from .common.result_files import Row, read_study, write_lines
from .common.tables import markdown_table, print_table
from .common.trial import check_trial, settle, starting_model

HEADER = ["method", "weights", "own loss", "distillation", "gradient"]


class Strength(NamedTuple):
    """
    Attributes:
        own: the detector's loss.
        distillation: the distillation loss.
        ratio: the norm of its gradient over that of the detector's own.
        idle: terms without any gradient.
    """

    own: float
    distillation: float
    ratio: float
    idle: List[str]


def calibrate(args: argparse.Namespace) -> None:
    """
    Print a line for each method as soon as it is measured, and a table of all.

    Raises:
        ValueError: an unknown method, several in the config, weights of another model, or a student
            without a gradient.
        DataError: an image that cannot be used; names it.
    """
    setup_logger(name="skd")
    set_up(args)
    methods = methods_named(args.methods)
    if args.output:  # a folder that cannot be made is said before anything is measured
        os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    for path in (args.config_file, args.teacher):
        allow(find_file(path))  # Python or not: the user has named it
    rows, inputs = [], None
    for method, balanced in itertools.product(methods, [False, True][: 1 + args.balanced]):
        run = describe(config_of(args, method, balanced))
        if inputs is None:
            check_trial(run)
            seed_all_rng(run.seed)
            inputs = next(iter(run.build_train_loader()))
        seed_all_rng(run.seed)
        found = strength(starting_model(run), inputs)
        rows.append({"method": method, "balanced": balanced, **found._asdict()})
        how = ", balanced" if balanced else ""
        print(f"{method}{how}: gradient {found.ratio:.3g} times the detector's own", flush=True)
        for name in found.idle:
            print(f"{method}: the term {name} has no gradient there: it teaches nothing.")
    print_table("at the first weights", HEADER, list(map(_cells, rows)))
    if args.output:
        write_lines(args.output, rows)


def _cells(row: Row) -> List[str]:
    how = "shares" if row["balanced"] else "its own"
    return [row["method"], how, *(f"{row[key]:.3g}" for key in Strength._fields[:3])]


def calibrated_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Each method's gradient with its own weights, and balanced.
    """
    rows = read_study(folder, "calibrated")
    ratios = {(row["method"], row["balanced"]): f"{row['ratio']:.3g}" for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    cells = [[m, ratios[m, False], ratios[m, True]] for m in methods]
    return markdown_table(["method", "with its own weights", "balanced"], cells).rstrip()


def config_of(args: argparse.Namespace, method: str, balanced: bool) -> Config:
    """
    The student's config, of either form, that distils by a method with its own weights, or with
    those that a balance gives.
    """
    cfg = read_config(find_file(args.config_file))
    form_of(cfg).check(cfg)
    distill(cfg, find_file(args.teacher), find_file(args.teacher_weights))
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DISTILLER.NAME = method
        cfg.MODEL.DISTILLER.BALANCE.ENABLED = balanced
        cfg.DATASETS.TEST = ()  # nothing is evaluated, so nothing of it is checked
    else:
        cfg.model.distiller = L(DISTILLER_REGISTRY.get(method))()
        cfg.model.balance = L(GradientBalance)(max_iter=cfg.train.max_iter) if balanced else None
    form_of(cfg).override(cfg, args.opts)
    check_not_combined(cfg)
    settle(cfg)
    return cfg


def strength(model: nn.Module, inputs: List[Dict[str, Any]]) -> Strength:
    """
    The strength of the gradients at the backbone's parameters, or at all of the student's where it
    has no backbone.

    Raises:
        ValueError: there are none to be trained, or the detector's loss has no gradient at them.
    """
    where = "the backbone's" if hasattr(model, "backbone") else "the student's"
    part = getattr(model, "backbone", model)
    named = [(k, p) for k, p in part.named_parameters() if not k.startswith(DISTILLER_PREFIX)]
    parameters = [p for _, p in named if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"None of {where} {len(named)} parameters is trained (MODEL.BACKBONE.FREEZE_AT, a "
            "LazyConfig's freeze_at): a gradient there cannot be measured, and distillation has "
            "nothing to teach."
        )
    with EventStorage():
        losses = model(inputs)
    own, terms = split_losses(losses)
    norm = _gradient([own], parameters)
    if norm == 0:
        raise ValueError(
            f"The detector's own losses have no gradient at {where} parameters, so nothing can be "
            "compared with it. Is any object in the first batch?"
        )
    distillation = list(terms.values())
    idle = [k for k, v in terms.items() if _gradient([v], parameters) == 0]
    ratio = _gradient(distillation, parameters) / norm
    return Strength(float(own), float(sum(distillation)), ratio, idle)


def _gradient(losses: List[torch.Tensor], parameters: List[nn.Parameter]) -> float:
    """The norm of the gradient of their sum; 0 where it does not depend on the parameters."""
    losses = [loss for loss in losses if loss.requires_grad]
    if not losses:
        return 0.0
    found = torch.autograd.grad(sum(losses), parameters, retain_graph=True, allow_unused=True)
    squares = [g.float().square().sum() for g in found if g is not None]
    return float(sum(squares)) ** 0.5
