"""The methods that a flag names."""

from typing import List, Sequence

from ...config import Config, run_settings
from ...distillers import DISTILLER_REGISTRY


def methods_named(names: Sequence[str]) -> List[str]:
    """
    Args:
        names: of ``--methods``; "all" by itself for every method there is.

    Returns:
        Each once.

    Raises:
        ValueError: there is no such method.
    """
    known = sorted(name for name, _ in DISTILLER_REGISTRY)
    if list(names) == ["all"]:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--methods has {', '.join(unknown)}; known are {', '.join(known)}.")
    return list(dict.fromkeys(names))


def check_not_combined(cfg: Config, who: str = "--methods") -> None:
    """
    Args:
        cfg: of a run whose method somebody else names.
        who: does so, for the error.

    Raises:
        ValueError: it combines methods, which would run in the place of that one.
    """
    if run_settings.select(cfg, "MODEL.DISTILLER.COMBINE"):
        raise ValueError(f"MODEL.DISTILLER.COMBINE is set; leave it out: {who} says what runs.")
