"""What a study file may hold."""

from typing import Any, Dict, Iterator, Tuple

from ...config.safe_yaml import UnsafeConfigError
from ...distillers.settings import is_whole

# A teacher's keys that a method may change: values that name nothing.
OF_TEACHERS = {"MODEL.TEACHER.HALF_SIZE"}
KEYS = {"iterations", "seeds", "opts", "teachers", "detectors", "methods", "compare"}


def check_study(spec: Dict[str, Any]) -> None:
    """
    Raises:
        ValueError: a key that is missing, unknown, or has a value of the wrong kind.
    """
    unknown = sorted(map(str, set(spec) - KEYS))
    missing = sorted(KEYS - {"opts"} - set(spec))
    if unknown or missing:
        raise ValueError(
            f"The study has the keys {sorted(map(str, spec))}"
            + (f"; unknown: {unknown}" if unknown else "")
            + (f"; missing: {missing}" if missing else "")
            + f". Possible are {sorted(KEYS)}."
        )
    for key, value, good, expected in _expectations(spec):
        if not good:
            raise ValueError(f"{key} of the study is {value!r}; it must be {expected}.")


def _expectations(spec: Dict[str, Any]) -> Iterator[Tuple[str, Any, bool, str]]:
    """Key, value, whether that is right, and what it must be; lazily, so that outer go first."""
    yield "iterations", spec["iterations"], is_whole(
        spec["iterations"]
    ), "a whole number, 0 or above"
    yield from _seeds("seeds", spec["seeds"])
    yield from _options("opts", spec.get("opts") or [])
    for key in ("teachers", "detectors", "methods"):
        value = spec[key]
        names = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        yield key, value, names and (bool(value) or key == "methods"), "names, each with its entry"
    for key in ("teachers", "detectors"):
        for name, entry in spec[key].items():
            yield from _entry(f"{key}.{name}", entry)
    for name, entry in spec["methods"].items():
        expected = "KEY: VALUE pairs"
        yield f"methods.{name}", entry, isinstance(entry or {}, dict), expected
        for key in entry or ():
            yield f"a key in methods.{name}", key, isinstance(key, str), "a text"
    good = isinstance(spec["compare"], list) and bool(spec["compare"])
    yield "compare", spec["compare"], good, "a list of tables"
    for i, entry in enumerate(spec["compare"]):
        yield from _table(f"compare[{i}]", entry)


def _entry(place: str, entry: Any) -> Iterator[Tuple[str, Any, bool, str]]:
    good = isinstance(entry, dict) and isinstance(entry.get("config"), str)
    yield place, entry, good, "KEY: VALUE pairs with 'config', a file"
    opts = entry.get("opts") or {}
    good = isinstance(opts, dict) and all(isinstance(key, str) for key in opts)
    yield f"{place}.opts", opts, good, "KEY: VALUE pairs"
    if "iterations" in entry:
        value = entry["iterations"]
        yield f"{place}.iterations", value, is_whole(value), "a whole number, 0 or above"
    weights = entry.get("weights", "")
    yield f"{place}.weights", weights, isinstance(weights or "", str), "a file"


def _table(place: str, entry: Any) -> Iterator[Tuple[str, Any, bool, str]]:
    good = isinstance(entry, dict)
    good = good and all(isinstance(entry.get(key), str) for key in ("name", "detector"))
    yield place, entry, good, "KEY: VALUE pairs with 'name', 'detector' and 'methods'"
    for key in ("methods", "teachers"):
        value = entry.get(key, [] if key == "methods" else ["x"])
        good = isinstance(value, list) and bool(value)
        good = good and all(isinstance(name, str) for name in value)
        yield f"{place}.{key}", value, good, "a list of names"
    if "seeds" in entry:
        yield from _seeds(f"{place}.seeds", entry["seeds"])


def _seeds(place: str, value: Any) -> Iterator[Tuple[str, Any, bool, str]]:
    good = isinstance(value, list) and bool(value) and all(map(is_whole, value))
    yield place, value, good, "a list of whole numbers, 0 or above"


def _options(place: str, value: Any) -> Iterator[Tuple[str, Any, bool, str]]:
    good = isinstance(value, list) and len(value) % 2 == 0
    good = good and all(isinstance(key, str) for key in value[::2])
    yield place, value, good, "a list of KEY, VALUE, ..."


def check_options(spec: Dict[str, Any]) -> None:
    """
    Options are values. What is on train_net's command line is the user's word; a file's is not.

    Raises:
        UnsafeConfigError: some would run code: a teacher's config, or what a LazyConfig calls.
    """
    opts = spec.get("opts") or []
    _check_pairs("opts", dict(zip(map(str, opts[::2]), opts[1::2])))
    for key in ("teachers", "detectors"):
        for name, entry in spec[key].items():
            _check_pairs(f"{key}.{name}.opts", entry.get("opts") or {})
    for name, settings in spec["methods"].items():
        for key, value in (settings or {}).items():
            by_detector = key in spec["detectors"] and isinstance(value, dict)
            pairs = value if by_detector else {key: value}
            _check_pairs(f"methods.{name}", pairs)


def _check_pairs(place: str, pairs: Dict[Any, Any]) -> None:
    for key, value in pairs.items():
        path = str(key).strip().lstrip("+~").upper()
        whole = path == "MODEL" or (path + ".").startswith("MODEL.TEACHER.")
        whole = whole and path not in OF_TEACHERS
        if whole or any(sign in f"{key}={value}" for sign in ("_target_", "${", "\\")):
            raise UnsafeConfigError(
                f"{place} of the study has {key}: {value}; in a study file it must change values "
                "only: no MODEL.TEACHER.* but HALF_SIZE (teachers have a section of their own), no "
                "_target_ and no ${...}, because these lead to code."
            )
