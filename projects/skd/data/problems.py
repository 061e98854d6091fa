"""What a check finds, and how it is told."""

import math
from typing import Any, Dict, List, NamedTuple, Tuple


class Problem(NamedTuple):
    """
    Attributes:
        level: "error" for what stops training or evaluation, "warning" for what is mended here or
            passed over by Detectron2.
        where: the file, image, annotation or category.
        what: is wrong, and what would be right.
    """

    level: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def merge_repeated(problems: List[Problem], errors: bool = False) -> List[Problem]:
    """
    Errors first; what is the same of many images or annotations once. Of errors only if asked for:
    a tool is to list all.
    """
    places: Dict[Tuple[str, str], List[str]] = {}
    kept = [p for p in problems if p.level == "error" and not errors]
    for problem in problems:
        if errors or problem.level == "warning":
            places.setdefault((problem.level, problem.what), []).append(problem.where)
    return kept + [Problem(level, _first(where), what) for (level, what), where in places.items()]


def _first(places: List[str]) -> str:
    if len(places) == 1:
        return places[0]
    return f"{len(places)} times: " + ", ".join(places[:3]) + (", ..." * (len(places) > 3))


def summary(problems: List[Problem], most: int = 10) -> str:
    """The first of them, one a line, and how many more there are; what many share is one."""
    problems = merge_repeated(problems, errors=True)
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  and {len(problems) - most} more")
    return "\n".join(lines)


def image_name(image: Dict[str, Any]) -> str:
    return f"image {short(image['id'])} ({short(image['file_name'])})"


def annotation_name(annotation: Dict[str, Any]) -> str:
    return f"annotation {short(annotation.get('id'))}"


def short(value: Any) -> str:
    """A value for a message, shortened: it may have a thousand digits or a million items."""
    try:
        text = repr(value)
    except ValueError:  # too many digits
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"  # a path's end is its name


def is_number(value: Any) -> bool:
    """Whether it is a finite number, as COCO's coordinates have to be; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float
        return False
