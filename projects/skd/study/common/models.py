"""Trained models on the command line of the tools: --model NAME CONFIG WEIGHTS."""

import argparse
import os
from dataclasses import dataclass
from typing import List

from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from torch import nn

from ...config import is_lazy_file, read_config, student_config, yaml_config
from ...config.naming import YAML, written_as
from ...engine.run import check_device
from ...modeling.load import load_in_full
from ...runtime.downloads import is_remote
from ...runtime.weights_file import without_query
from .command import add_setup_arguments, set_up
from .paths import find_file


@dataclass
class Model:
    """
    A trained model, in eval mode.

    Attributes:
        name: for tables.
        cfg: the student's own, of a config that distils.
        model: with its weights.
        weights: the file they are from.
    """

    name: str
    cfg: CfgNode
    model: nn.Module
    weights: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--model`` and ``--opts``, for :func:`load_models`, and what is set up before."""
    parser.add_argument(
        "--model",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "CONFIG", "WEIGHTS"),
        help="a trained model: a name for the tables, its .yaml, its checkpoint (several times)",
    )
    add_setup_arguments(parser)
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE ... for every model")


def load_models(args: argparse.Namespace) -> List[Model]:
    """
    Build and load all of them, in eval mode.

    Raises:
        ValueError: a name is given twice, or a file is not there.
    """
    setup_logger(name="skd")
    set_up(args)
    names = [name for name, _, _ in args.model]
    if len(set(names)) < len(names):
        raise ValueError(f"--model has a name twice: {names}.")
    models = []
    for name, config, weights in args.model:
        config, weights = find_file(config), find_file(weights)
        for path in (config, weights):
            if not is_remote(path) and not os.path.exists(without_query(path)):
                raise ValueError(f"--model {name}: no file '{path}'.")
        if is_lazy_file(config):
            raise ValueError(f"--model {name}: '{config}' is a LazyConfig; give a YAML config.")
        cfg = read_config(config)
        yaml_config.override(cfg, args.opts)
        cfg = student_config(cfg)
        with written_as(YAML):
            check_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
        model = build_model(cfg).eval()
        load_in_full(model, weights, f"--model {name}", f"--model {name}")
        models.append(Model(name, cfg, model, without_query(weights)))
    return models


def load_predictor(cfg: CfgNode) -> DefaultPredictor:
    """Detectron2's predictor, with ``cfg.MODEL.WEIGHTS`` loaded by the project's checkpointer."""
    cfg, weights = cfg.clone(), cfg.MODEL.WEIGHTS
    cfg.MODEL.WEIGHTS = ""
    predictor = DefaultPredictor(cfg)
    load_in_full(predictor.model, weights, "MODEL.WEIGHTS", "config.yaml")
    return predictor
