#!/usr/bin/env python
"""
Make a trained model's checkpoint small: its weights only, in half precision, without optimizer and
distiller.

    python tools/slim_checkpoint.py output/teacher/model_final.pth configs/shapes/teacher.pth
"""

import argparse
import os

import torch

from skd.modeling.teacher import DISTILLER_PREFIX
from skd.runtime.safe_files import load_tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("source", help="a checkpoint of Detectron2's trainer")
    parser.add_argument("target", help="the file to write")
    args = parser.parse_args()
    checkpoint = load_tensors(args.source)
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in checkpoint["model"].items()
        if not key.startswith(DISTILLER_PREFIX)
    }
    torch.save({"model": state, "iteration": checkpoint.get("iteration", 0)}, args.target)
    print(f"{args.target}: {len(state)} tensors, {os.path.getsize(args.target) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
