"""What is set and has no effect, because the terms of a method are balanced, or are not."""

import logging
from dataclasses import fields
from typing import Any, List, Sequence

from .settings import Settings
from .words import called

logger = logging.getLogger(__name__)


def warn_of_idle(methods: Sequence[Any], balance: Any, balanced: bool) -> None:
    """
    One warning, in the user's words.

    Args:
        methods: distillers in use, before :meth:`Distiller.bind`.
        balance: a :class:`GradientBalance`.
        balanced: whether it is to weigh their terms.
    """
    enabled = balance.called("enabled")
    if balanced:
        idle = [name for method in methods for name in _weights(method)]
        why = (
            f"the terms are weighed by their gradients. {balance.called('shares')} sets their "
            f"proportions; with {enabled} False the weights are used."
        )
    else:
        used = ("enabled", "period")  # the latter by what is shown of the terms
        idle = [balance.called(name) for name in _changed(balance.settings) if name not in used]
        why = (
            f"with published weights (a preset) or {enabled} False nothing is balanced, and the "
            f"teacher stays to the end. {enabled} True balances."
        )
    if idle:
        logger.warning(f"{', '.join(idle)} set, and without effect: {why}")


def _weights(method: Any) -> List[str]:
    """The weights that are set. 0 has an effect: it drops the term."""
    names = [n for n in _changed(method.settings) if n.startswith("weight")]
    return [called(type(method), n) for n in names if getattr(method.settings, n) != 0]


def _changed(settings: Settings) -> List[str]:
    pairs = {f.name: (getattr(settings, f.name), f.default) for f in fields(settings)}
    # until 1.0 says what is the case
    return [
        name
        for name, (value, default) in pairs.items()
        if _plain(value) != _plain(default) and (name, value) != ("until", 1.0)
    ]


def _plain(value: Any) -> Any:
    """Lists of a config are tuples in Python."""
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value
