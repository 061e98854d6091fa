"""What tools/calibrate.py does."""

import argparse
from typing import Any, Dict, List, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from ..config import Config, distill, form_of, read_config
from ..config.lazy import allow
from ..distillers import DISTILLER_REGISTRY
from ..runtime.checkpoint import SafeCheckpointer
from .common.command import set_up
from .common.paths import find_file
from .common.tables import print_table


def calibrate(args: argparse.Namespace) -> None:
    """
    Print a line for each method as soon as it is measured, and a table of all.

    Raises:
        ValueError: an unknown method.
    """
    set_up(args)
    known = sorted(name for name, _ in DISTILLER_REGISTRY)
    methods = known if args.methods == ["all"] else args.methods
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise ValueError(f"--methods has {', '.join(unknown)}; known are {', '.join(known)}.")
    for path in (args.config_file, args.teacher):
        allow(find_file(path))  # Python or not: the user has named it
    rows, inputs = [], None
    for method in methods:
        cfg = config_of(args, method)
        seed = max(cfg.SEED if isinstance(cfg, CfgNode) else cfg.train.get("seed", -1) or 0, 0)
        if inputs is None:
            seed_all_rng(seed)
            inputs = next(iter(_loader(cfg)))
        seed_all_rng(seed)
        own, distillation, ratio = gradient_ratio(_model(cfg), inputs)
        rows.append([method, f"{own:.4g}", f"{distillation:.4g}", f"{ratio:.3g}"])
        print(f"{method}: gradient {ratio:.3g} times the detector's own", flush=True)
    print_table("at the first weights", ["method", "own loss", "distillation", "gradient"], rows)


def config_of(args: argparse.Namespace, method: str) -> Config:
    """The student's config, of either form, that distils by a method with its own weights."""
    cfg = read_config(find_file(args.config_file))
    distill(cfg, find_file(args.teacher), find_file(args.teacher_weights))
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DISTILLER.NAME = method
        cfg.MODEL.DISTILLER.BALANCE.ENABLED = False
        cfg.DATALOADER.NUM_WORKERS = 0
    else:
        cfg.model.distiller = L(DISTILLER_REGISTRY.get(method))()
        cfg.model.balance = None
        cfg.dataloader.train.num_workers = 0
    return form_of(cfg).override(cfg, args.opts)


def _loader(cfg: Config) -> Any:
    if isinstance(cfg, CfgNode):
        return build_detection_train_loader(cfg)
    return instantiate(cfg.dataloader.train)


def _model(cfg: Config) -> nn.Module:
    if isinstance(cfg, CfgNode):
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model).to(cfg.train.device), cfg.train.init_checkpoint
    SafeCheckpointer(model).load(weights)
    return model.train()


def gradient_ratio(model: nn.Module, inputs: List[Dict]) -> Tuple[float, float, float]:
    """The detector's loss, the distillation loss, and the ratio of their gradients' norms."""
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    with EventStorage():
        losses = model(inputs)
    own = sum(v for k, v in losses.items() if not k.startswith("loss_distill_"))
    distillation = sum(v for k, v in losses.items() if k.startswith("loss_distill_"))
    norms = []
    for loss in (own, distillation):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        squares = [g.square().sum() for g in gradients if g is not None]
        norms.append(torch.stack(squares).sum().sqrt().item())
    return own.item(), distillation.item(), norms[1] / norms[0]
