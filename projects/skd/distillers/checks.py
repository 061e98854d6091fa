"""Checks of settings, with errors that name the config key below ``MODEL.DISTILLER``."""

import math
import numbers
from typing import Any, Sequence


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless the value is among the choices."""
    if value not in choices:
        _fail(key, value, f"one of {', '.join(repr(c) for c in choices)}")


def check_flag(key: str, value: Any) -> None:
    """Raises ValueError unless the value is a bool."""
    if not isinstance(value, bool):
        _fail(key, value, "True or False")


def check_number(key: str, value: Any, positive: bool = False, below: float = math.inf) -> None:
    """Raises ValueError unless the value is a number, 0 or above (or above 0), and in range."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and (value > 0 if positive else value >= 0) and value < below):
        limit = f" and below {below:g}" if below < math.inf else ""
        _fail(key, value, f"a number{' above 0' if positive else ', 0 or above'}{limit}")


def _fail(key: str, value: Any, expected: str) -> None:
    raise ValueError(f"MODEL.DISTILLER.{key} is {value!r}; it must be {expected}.")
