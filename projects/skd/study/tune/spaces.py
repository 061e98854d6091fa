"""What is searched of each method: its terms, and choices of levels."""

from typing import Dict, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ...config.methods import build_balance, build_distiller
from ...distillers.balance import PREFIX
from ...distillers.base import Shapes
from ...distillers.schedule import UNTIL as DEFAULT_UNTIL
from ...modeling.state import pairs_of
from ..common.methods import methods_named
from .search import UNTIL, WARMUP, Space

BALANCE = "MODEL.DISTILLER.BALANCE"


def spaces_of(
    cfg: CfgNode, methods: Sequence[str], levels: Sequence[str], iterations: int
) -> Dict[str, Space]:
    """
    What is searched of each method. Builds student and teacher, so that what does not fit is an
    error now.

    Args:
        cfg: distilling.
        methods: names, or "all".
        levels: choices of levels as "p2,p3"; empty for all, and all without the first or last.

    Raises:
        ValueError: an unknown method or level, or settings that would stop a run.
    """
    methods = methods_named(methods)
    if cfg.MODEL.DISTILLER.COMBINE:
        raise ValueError("MODEL.DISTILLER.COMBINE is set; leave it out: --methods says what runs.")
    cfg = cfg.clone()
    balance = cfg.MODEL.DISTILLER.BALANCE
    first = {
        "SHARE": balance.SHARE,
        "DECAY": balance.DECAY,
        "WARMUP": balance.WARMUP / iterations,
        "UNTIL": balance.UNTIL or DEFAULT_UNTIL,
    }
    own = dict(balance.SHARES)
    cfg.merge_from_list(
        ["SOLVER.MAX_ITER", iterations, "MODEL.DEVICE", "cpu", "MODEL.DISTILLER.NAME", methods[0]]
        + [f"{BALANCE}.ENABLED", True, f"{BALANCE}.SHARES", []]
    )
    shapes = _shapes(cfg)
    choices = _level_choices(list(shapes), levels)
    # the least time between warm-up and end that there is to be tried
    longest = int(WARMUP[1] * iterations)
    cfg.merge_from_list([f"{BALANCE}.UNTIL", UNTIL[0], f"{BALANCE}.WARMUP", longest])
    build_balance(cfg)
    spaces = {}
    for method in methods:
        cfg.MODEL.DISTILLER.NAME = method
        terms = _terms(cfg, shapes)
        parts = {t: own.get(t, own.get(PREFIX + t, 1.0)) for t in terms}
        scale = parts[terms[0]] or 1.0
        spaces[method] = Space(
            terms, choices, {**first, **{t: p / scale for t, p in parts.items()}}
        )
    return spaces


def _shapes(cfg: CfgNode) -> Shapes:
    model = build_model(cfg)
    return {name: (pair.student, pair.teacher) for name, pair in pairs_of(model).items()}


def _terms(cfg: CfgNode, shapes: Shapes) -> List[str]:
    """Names of a method's terms: what it returns for random maps."""
    distiller = build_distiller(cfg)
    distiller.bind(shapes)
    side = 2 * max(student.stride for student, _ in shapes.values())

    def maps(which: int) -> Dict[str, torch.Tensor]:
        sizes = {name: pair[which] for name, pair in shapes.items()}
        return {
            name: torch.randn(2, spec.channels, side // spec.stride, side // spec.stride)
            for name, spec in sizes.items()
        }

    boxes = [torch.tensor([[0.0, 0.0, side / 2, side / 2]])] * 2 if distiller.needs_boxes else None
    with torch.no_grad():
        return [name[len(PREFIX) :] for name in distiller(maps(0), maps(1), boxes)]


def _level_choices(names: List[str], given: Sequence[str]) -> List[str]:
    """Choices of levels as "p2,p3", all levels first."""
    found = [",".join(names)]
    for choice in given:
        unknown = sorted(set(choice.split(",")) - set(names))
        if unknown:
            raise ValueError(
                f"--levels has {choice}; it must be of {','.join(names)}, without spaces."
            )
        found.append(",".join(name for name in names if name in choice.split(",")))
    if not given and len(names) > 2:
        found += [",".join(names[1:]), ",".join(names[:-1])]
    return list(dict.fromkeys(found))
