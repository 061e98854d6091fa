"""The methods that a flag names."""

from typing import List, Sequence

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
