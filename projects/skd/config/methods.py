"""The keys ``MODEL.DISTILLER`` of a YAML config, and the methods that they describe."""

from detectron2.config import CfgNode

from ..distillers import DISTILLER_REGISTRY, CombinedDistiller, Distiller, GradientBalance
from ..distillers.balance import BalanceSettings
from ..distillers.heads import HeadsSettings
from ..distillers.settings import is_number
from .naming import YAML, written_as


def distiller_node() -> CfgNode:
    """
    ``MODEL.DISTILLER``: which methods, which levels, and below the name of each method registered
    by now its settings. They are declared and explained in ``Settings`` in the method's file.
    """
    node = CfgNode()
    # The method: a name in skd.DISTILLER_REGISTRY; docs/comparison.md lists them.
    node.NAME = "StructuredDistiller"
    # Several methods in place of NAME, the losses of each multiplied by a weight:
    # [["StructuredDistiller", 1.0], ["PKD", 0.5]].
    node.COMBINE = []
    # The student's feature maps to distil, e.g. ["p3", "p4"]. Empty: all that have a teacher's
    # map of the same stride; of RetinaNet and FCOS, where the terms are balanced, those of stride
    # 32 at most (p3-p5). FGD, MGD and PKD take the finest NUM_LEVELS of these.
    node.LEVELS = []
    # Run the teacher and compute the losses in every EVERY-th iteration only, with EVERY times the
    # weight: the mean pull is the same, at a part of the cost. docs/performance.md says more.
    node.EVERY = 1
    # Factor of the terms on images without labels (DATASETS.UNLABELLED), on top of their own
    # weights, which are those that the terms have on the labelled ones.
    node.UNLABELLED_WEIGHT = 1.0
    # Weights of the terms by their gradients: see BalanceSettings in balance.py.
    node.BALANCE = BalanceSettings.node()
    # Learn from the teacher's heads too: see HeadsSettings in heads/settings.py.
    node.HEADS = HeadsSettings.node()
    for _, method in DISTILLER_REGISTRY:
        settings = method.Settings.node() if issubclass(method, Distiller) else {}
        if settings:
            node[method.config_key()] = settings
    return node


def build_balance(cfg: CfgNode) -> GradientBalance:
    """
    What ``MODEL.DISTILLER.BALANCE`` describes; :meth:`Distiller.bind_once` drops one that is off.

    Raises:
        ValueError: a value out of range; names the key.
    """
    settings = BalanceSettings.arguments(cfg.MODEL.DISTILLER.BALANCE)
    with written_as(YAML):
        return GradientBalance(max_iter=cfg.SOLVER.MAX_ITER, **settings)


def build_distiller(cfg: CfgNode) -> Distiller:
    """
    Build the method ``MODEL.DISTILLER.NAME``, or those of ``MODEL.DISTILLER.COMBINE``.

    Raises:
        ValueError: an unknown name, or a list that is not one of names and weights.
    """
    combine = cfg.MODEL.DISTILLER.COMBINE
    if not combine:
        return _build(cfg.MODEL.DISTILLER.NAME, "NAME", cfg)
    pairs = [tuple(pair) for pair in combine if isinstance(pair, (list, tuple)) and len(pair) == 2]
    good = all(isinstance(n, str) and is_number(w) and w > 0 for n, w in pairs)
    names = [name for name, *_ in pairs]
    if len(pairs) < len(combine) or not good or len(set(names)) < len(names):
        raise ValueError(
            f"MODEL.DISTILLER.COMBINE is {combine!r}; it must be a list of [method, weight] with "
            "different methods and weights above 0, like [['StructuredDistiller', 1.0], "
            "['PKD', 0.5]]."
        )
    return CombinedDistiller(
        {name: (_build(name, "COMBINE", cfg), float(weight)) for name, weight in pairs}
    )


def _build(name: str, key: str, cfg: CfgNode) -> Distiller:
    if name not in DISTILLER_REGISTRY:
        raise ValueError(
            f"Unknown method '{name}' (MODEL.DISTILLER.{key}). "
            f"Known: {', '.join(sorted(k for k, _ in DISTILLER_REGISTRY))}."
        )
    with written_as(YAML):
        return DISTILLER_REGISTRY.get(name)(cfg)
