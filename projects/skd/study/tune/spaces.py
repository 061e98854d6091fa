"""What is searched of each method: its terms, and choices of levels."""

import copy
from dataclasses import replace
from typing import Callable, Dict, List, Sequence

import torch
from detectron2.config import CfgNode, instantiate

from ...config import Config, run_settings
from ...config.methods import build_distiller
from ...config.naming import written_as
from ...distillers import Distiller, GradientBalance
from ...distillers.balance import short_name
from ...distillers.base import Shapes
from ...distillers.schedule import UNTIL as DEFAULT_UNTIL
from ...distillers.words import called
from ...engine import describe
from ...modeling.state import pairs_of
from ..common.methods import check_not_combined, methods_named
from .search import SHARE, UNTIL, WARMUP, Space


def spaces_of(
    cfg: Config,
    override: Callable[[Config, Sequence[str]], Config],
    methods: Sequence[str],
    levels: Sequence[str],
    iterations: int,
) -> Dict[str, Space]:
    """
    What is searched of each method. Builds student and teacher, so that what does not fit is an
    error now.

    Args:
        cfg: distilling, of either form.
        override: a config with KEY, VALUE, ... of either form.
        methods: names, or "all".
        levels: choices of levels as "p2,p3"; empty for all, and all without the first or last.

    Raises:
        ValueError: an unknown method or level, or settings that would stop a run.
    """
    methods = methods_named(methods)
    check_not_combined(cfg)
    form = run_settings.form_name(cfg)
    cfg = copy.deepcopy(cfg)
    run_settings.put(cfg, "max_iter", iterations)
    run_settings.put(cfg, "device", "cpu")
    with written_as(form):
        cfg = override(cfg, [called(GradientBalance, "enabled"), "True"])
    cfg = override(cfg, ["MODEL.DISTILLER.NAME", methods[0]])
    model = describe(cfg).build_model()
    shapes = {name: (pair.student, pair.teacher) for name, pair in pairs_of(model).items()}
    choices = _level_choices(list(shapes), levels)
    balance = model.distiller.balance
    given = balance.settings
    first = {
        "SHARE": balance.share,
        "DECAY": given.decay,
        "WARMUP": given.warmup / iterations,
        "UNTIL": given.until or DEFAULT_UNTIL,
    }
    # the least time between warm-up and end that there is to be tried
    balance.settings = replace(given, until=UNTIL[0], warmup=int(WARMUP[1] * iterations))
    with written_as(form):
        balance.check_schedule()
    share = tuple(limit * balance.share_factor for limit in SHARE)
    spaces = {}
    for method in methods:
        distiller = _distiller(override(cfg, ["MODEL.DISTILLER.NAME", method]))
        distiller.bind_once(shapes, student_stride=model.distiller.student_stride)
        terms = _terms(distiller, shapes)
        parts = {t: balance.proportions.get(t, 1.0) for t in terms}
        scale = parts[terms[0]] or 1.0
        spaces[method] = Space(
            terms, choices, {**first, **{t: p / scale for t, p in parts.items()}}, share
        )
    return spaces


def _distiller(cfg: Config) -> Distiller:
    return build_distiller(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model.distiller)


def _terms(distiller: Distiller, shapes: Shapes) -> List[str]:
    """Names of a method's terms: what it returns for random maps."""
    side = 2 * max(student.stride for student, _ in shapes.values())

    def maps(which: int) -> Dict[str, torch.Tensor]:
        sizes = {name: pair[which] for name, pair in shapes.items()}
        return {
            name: torch.randn(2, spec.channels, side // spec.stride, side // spec.stride)
            for name, spec in sizes.items()
        }

    boxes = [torch.tensor([[0.0, 0.0, side / 2, side / 2]])] * 2 if distiller.needs_boxes else None
    with torch.no_grad():
        return [short_name(name) for name in distiller(maps(0), maps(1), boxes)]


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
