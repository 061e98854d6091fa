#!/usr/bin/env python
"""
How strong is each method, with its weights as they are, on a detector and data of your own? Prints
the norm of the gradient of the distillation loss over that of the detector's own losses, both at
the backbone's parameters, at the first weights and one batch. Weights from papers were chosen for
COCO, and for networks trained with them; use the ratio to choose where to start a search.
"""

import argparse
import os

import torch
from detectron2.data import build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from skd import distill
from skd.config import read_config
from skd.distillers import DISTILLER_REGISTRY
from skd.runtime.checkpoint import SafeCheckpointer
from skd.study.runs import ROOT, print_table


def main():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split()))
    parser.add_argument("--config-file", required=True, help="a student's plain config")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-weights", default="")
    parser.add_argument("--methods", nargs="+", default=sorted(k for k, _ in DISTILLER_REGISTRY))
    parser.add_argument("opts", nargs="*", help="further config options, KEY VALUE ...")
    args = parser.parse_args()
    os.chdir(ROOT)
    rows, inputs = [], None
    for method in args.methods:
        cfg = read_config(args.config_file)
        distill(cfg, args.teacher, args.teacher_weights)
        cfg.merge_from_list(["MODEL.DISTILLER.NAME", method, "DATALOADER.NUM_WORKERS", 0])
        cfg.merge_from_list(args.opts)
        if inputs is None:
            seed_all_rng(max(cfg.SEED, 0))
            inputs = next(iter(build_detection_train_loader(cfg)))
        seed_all_rng(max(cfg.SEED, 0))
        model = build_model(cfg).train()
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
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
        rows.append(
            [
                method,
                f"{own.item():.4g}",
                f"{distillation.item():.4g}",
                f"{norms[1] / norms[0]:.3g}",
            ]
        )
    print_table("at the first weights", ["method", "own loss", "distillation", "gradient"], rows)


if __name__ == "__main__":
    main()
