"""
A file in COCO's format, read: whether it is one at all.

Types are looked at before values; whatever is in the file, nothing here crashes or hangs.
"""

import gc
import json
import os
from contextlib import contextmanager
from itertools import chain
from typing import Any, Dict, Iterator, List, Tuple

from detectron2.utils.file_io import PathManager

from .mend import Notes, column, types
from .problems import Problem, short, summary

LISTS = ("images", "annotations", "categories")
NEEDS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


@contextmanager
def without_gc() -> Iterator[None]:
    """Millions of objects are made and none is garbage: looking for it takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_coco(json_file: str, notes: Notes) -> Tuple[Any, List[Problem]]:
    """The content of an annotation file, or None, and what makes it no COCO file."""
    try:
        if os.path.exists(json_file) and not os.path.isfile(json_file):
            raise OSError("it is no regular file")  # a pipe would hang, a device never end
        with PathManager.open(json_file, "rb") as f:
            data = f.read()
        content = _parse(data)
    except FileNotFoundError:
        return None, [Problem("error", json_file, "there is no such file")]
    except (OSError, ValueError, RecursionError) as error:
        return None, [Problem("error", json_file, f"cannot be read as JSON: {error}")]
    if json.detect_encoding(data[:4]) != "utf-8":
        notes.add("the file", "is not in plain UTF-8, which pycocotools needs")
    problems = list(_structure(content))
    bad = [Problem(p.level, f"{json_file}, {p.where}", p.what) for p in problems]
    return (None if bad else content), bad


def _parse(data: bytes) -> Any:
    """
    orjson takes a quarter of the time. What it refuses (nan, half letters) or would round (ids of
    more than 64 bits), and where it is not installed, is json's.
    """
    try:
        import orjson

        content = orjson.loads(data)
    except (ImportError, ValueError):
        return json.loads(data)
    return json.loads(data) if _has_rounded_ids(content) else content


def _has_rounded_ids(content: Any) -> bool:
    lists = [content.get(key) for key in ("images", "categories")] if type(content) is dict else []
    entries = chain.from_iterable(entries for entries in lists if type(entries) is list)
    ids = (entry.get("id") for entry in entries if type(entry) is dict)
    return any(type(value) is float and value >= 2**63 for value in ids)


def open_coco(json_file: str) -> Dict[str, Any]:
    """
    The content of an annotation file, as it is.

    Raises:
        ValueError: it is not a file in COCO's format; lists why.
    """
    content, problems = read_coco(json_file, Notes())
    if problems:
        raise ValueError(f"It must be a file in COCO's format:\n{summary(problems)}")
    return content


def _is_id(value: Any) -> bool:
    # 7.0 is what pandas makes of 7
    return type(value) in (int, str) or (type(value) is float and value.is_integer())


def _structure(content: Any) -> Iterator[Problem]:
    """What makes the file no COCO file."""
    if not isinstance(content, dict):
        yield Problem("error", "top", f"is a {type(content).__name__}; it must be an object")
        return
    for key in LISTS:
        if key == "annotations" and content.get(key) is None:
            continue  # a test set whose annotations are kept back
        if not isinstance(content.get(key), list):
            yield Problem("error", key, f"has no list '{key}'")
            continue
        kinds = set()
        for i, entry in enumerate(() if _all_refer(content[key], key) else content[key]):
            problem = _entry(entry, key)
            if problem:
                yield Problem("error", f"{key}[{i}]", problem)
            elif key != "annotations":
                kinds.add(isinstance(entry["id"], str))
        if len(kinds) == 2:
            yield Problem("error", key, "has ids that are numbers and ids that are text")
    if content.get("images") == [] or content.get("categories") == []:
        yield Problem("error", "top", "lists no images, or no categories")


def _all_refer(entries: List[Any], key: str) -> bool:
    """Whether all are annotations with whole numbers for references: of these there are many."""
    if key != "annotations" or not types(entries) <= {dict}:
        return False
    return all(types(column(entries, name)) <= {int} for name in NEEDS[key])


def _entry(entry: Any, key: str) -> str:
    if not isinstance(entry, dict):
        return "is no object"
    missing = [name for name in NEEDS[key] if name not in entry]
    if missing:
        return f"has no {', '.join(map(repr, missing))}"
    for name in NEEDS[key]:
        value, text = entry[name], name in ("file_name", "name")
        if not (isinstance(value, str) if text else _is_id(value)):
            return f"has the {name} {short(value)}, no {'text' if text else 'number or text'}"
        if isinstance(value, str) and "\0" in value:
            return f"has a NUL in its {name} {short(value)}"
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            return f"has half a letter (a surrogate) in its {name} {short(value)}"
    return ""
