#!/usr/bin/env python
"""
Train or evaluate a Detectron2 model, with a teacher or without.

    python train_net.py --config-file CONFIG --num-gpus 8 [--teacher CONFIG] [KEY VALUE ...]
    torchrun --nproc-per-node 8 train_net.py --config-file CONFIG ...

CONFIG is any Detectron2 config, a .yaml or a LazyConfig .py. It distils if it says so itself (see
configs/) or if --teacher is given; otherwise the model it describes is trained. What this does is
in projects/skd/train_net.py, which an installed skd runs as `python -m skd.train_net`.
"""

from skd.train_net import argument_parser, command, launch, main, setup

__all__ = ["argument_parser", "command", "launch", "main", "setup"]

if __name__ == "__main__":
    command()
