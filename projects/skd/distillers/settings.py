"""
A method's settings, declared once: the fields of the ``Settings`` in its class. The config keys
``MODEL.DISTILLER.<NAME>.*``, the arguments of Python and LazyConfig, the defaults and the checks
all come from there.
"""

import difflib
import math
import numbers
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Callable, Dict, Mapping, NamedTuple, Sequence

from detectron2.config import CfgNode

from .words import called


class Kind(NamedTuple):
    """expected: ends the error "... it must be"; accepts: whether a value is one."""

    expected: str
    accepts: Callable[[Any], bool]


def _setting(default: Any, kind: Kind, key: str = "") -> Any:
    return field(default=default, metadata={"kind": kind, "key": key})


def number(default: Any, *, positive: bool = False, below: float = math.inf) -> Any:
    """A number, 0 or above (or above 0), and below a limit."""
    limit = f" and below {below:g}" if below < math.inf else ""
    kind = f"a number{' above 0' if positive else ', 0 or above'}{limit}"
    return _setting(default, Kind(kind, lambda v: _in_range(v, positive, below)))


def part(default: Any) -> Any:
    """A part of a whole."""
    kind = Kind("a number above 0, at most 1", lambda v: _positive(v) and v <= 1)
    return _setting(default, kind)


def positive_numbers(default: Sequence[float]) -> Any:
    """A list of numbers above 0."""
    kind = Kind("a list of numbers above 0", lambda v: _is_list(v) and all(map(_positive, v)))
    return _setting(default, kind)


def whole(default: Any) -> Any:
    """A whole number above 0."""
    return _setting(default, Kind("a whole number above 0", lambda v: is_whole(v, 1)))


def count(default: Any) -> Any:
    """A whole number, 0 or above."""
    return _setting(default, Kind("a whole number, 0 or above", is_whole))


def proportions(default: Any) -> Any:
    """Pairs of a name and a number."""
    return _setting(default, Kind("a list of [name, number], numbers 0 or above", _named_numbers))


def texts(default: Any) -> Any:
    """A list of names."""
    kind = Kind("a list of names", lambda v: _is_list(v) and all(isinstance(x, str) for x in v))
    return _setting(default, kind)


def flag(default: Any) -> Any:
    """True or False."""
    return _setting(default, Kind("True or False", lambda v: isinstance(v, bool)))


def choice(default: Any, choices: Sequence[str], key: str = "") -> Any:
    """
    One of some names.

    Args:
        key: of the config, below the method's node; default: the field's name.
    """
    names = ", ".join(repr(name) for name in choices)
    return _setting(default, Kind(f"one of {names}", lambda v: v in choices), key)


def by_stride(default: Any, key: str = "") -> Any:
    """Pairs of stride and value. ``key``: see :func:`choice`."""
    expected = "a list of [stride, value], whole numbers above 0"
    return _setting(default, Kind(expected, _pairs), key)


@dataclass(frozen=True)
class Settings:
    """
    Base of all settings: subclasses are dataclasses whose fields are made by the functions above.
    None is a value of those settings that have it as default: it stands for the authors' choice,
    which depends on the levels.
    """

    @classmethod
    def node(cls) -> CfgNode:
        """The config keys and their defaults."""
        node = CfgNode()
        for f in fields(cls):
            *parents, name = _key(f).split(".")
            inner = node
            for parent in parents:
                inner = inner.setdefault(parent, CfgNode())
            inner[name] = list(f.default) if isinstance(f.default, tuple) else f.default
        return node

    @classmethod
    def make(cls, values: Mapping[str, Any], owner: type) -> "Settings":
        """
        Args:
            values: by the fields' names; those left out are at their default.
            owner: the class that has these settings, for errors, see ``words.py``.

        Raises:
            TypeError: there is no such setting; names the nearest.
            ValueError: a value out of range; names the setting.
        """
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"do you mean '{near[0]}'?" if near else f"it has {', '.join(names)}."
                raise TypeError(f"{owner.__name__} has no setting '{name}'; {hint}")
        for f in fields(cls):
            value, kind = values.get(f.name, f.default), f.metadata["kind"]
            if not (kind.accepts(value) or value is None and f.default is None):
                name = called(owner, f.name)
                raise ValueError(f"{name} is {value!r}; it must be {kind.expected}.")
        return cls(**values)

    @classmethod
    def arguments(cls, node: CfgNode) -> Dict[str, Any]:
        """
        The arguments that the keys of a node stand for.

        Args:
            node: as :meth:`node` made it.
        """
        values = {}
        for f in fields(cls):
            values[f.name] = node
            for name in _key(f).split("."):
                values[f.name] = values[f.name][name]
        return values

    @classmethod
    def key(cls, name: str) -> str:
        """A field's key below the node."""
        return next(_key(f) for f in fields(cls) if f.name == name)

    def filled(self, defaults: Mapping[str, Any]) -> "Settings":
        """These settings, with what is None taken from ``defaults``."""
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})


def _key(f: Field) -> str:
    return f.metadata["key"] or f.name.upper()


def is_number(value: Any) -> bool:
    """Whether a setting's value is a number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any, least: float = 0) -> bool:
    """Whether it is a whole number, ``least`` or above."""
    return isinstance(value, int) and is_number(value) and value >= least


def _in_range(value: Any, positive: bool = False, below: float = math.inf) -> bool:
    return is_number(value) and (value > 0 if positive else value >= 0) and value < below


def _positive(value: Any) -> bool:
    return _in_range(value, positive=True)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _pairs(value: Any) -> bool:
    try:
        return all(is_whole(v, 1) for pair in dict(value).items() for v in pair)
    except (TypeError, ValueError):
        return False


def _named_numbers(value: Any) -> bool:
    try:
        return all(isinstance(k, str) and _in_range(v) for k, v in dict(value).items())
    except (TypeError, ValueError):
        return False
