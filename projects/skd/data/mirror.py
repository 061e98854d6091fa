"""Which keypoints swap places when an image is mirrored, as their names say."""

import re
from typing import Iterator, List, Sequence, Tuple

# How names say which side is meant, as a pattern and what takes its place on the other side. Words
# may be anywhere (left_ear, EarLeft); an L alone, or a capital one that no small letter follows
# (l_ear, ear_L, LEar).
_SIDES = (
    (r"left", "right"),
    (r"Left", "Right"),
    (r"LEFT", "RIGHT"),
    (r"(?<![A-Za-z])l(?![A-Za-z])", "r"),
    (r"L(?![a-z])", "R"),
)
_WORD = re.compile("left|right", re.IGNORECASE)


def flips(names: Sequence[str]) -> List[Tuple[str, str]]:
    """Pairs (left, right) of keypoints that a mirrored image swaps: those whose both are there."""
    pairs = [(name, other) for name in names for other in _others(name) if other in names]
    return list({left: (left, right) for left, right in reversed(pairs)}.values())[::-1]


def _others(name: str) -> Iterator[str]:
    for pattern, right in _SIDES:
        for found in re.finditer(pattern, name):
            yield name[: found.start()] + right + name[found.end() :]


def without_partner(names: Sequence[str], pairs: Sequence[Tuple[str, str]]) -> List[str]:
    """Names that speak of left or right and are in no pair."""
    paired = {name for pair in pairs for name in pair}
    return [name for name in names if _WORD.search(name) and name not in paired]
