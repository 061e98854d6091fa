"""What the doctor says."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Tuple

from tabulate import tabulate

NOTHING_FOUND = (
    "Nothing is wrong that could be found. "
    "Whether it helps, only a training without a teacher tells."
)


class Finding(NamedTuple):
    """name: the cause, in a few words. text: what was seen, and what to do."""

    name: str
    text: str


@dataclass
class Verdict:
    """
    What :func:`examine` found.

    Attributes:
        findings: what is wrong; empty if nothing is.
        teacher, student: box AP50 whatever class a box is given, 0 to 100; None if not known.
        terms: share of the detector's gradient and cosine with it, by term.
        levels: centered kernel alignment of student's and teacher's map, by level.
        distilled: the teacher's maps that are; empty if not known.
        notes: what need not be wrong, but is good to know.
    """

    findings: List[Finding] = field(default_factory=list)
    teacher: Any = None
    student: Any = None
    terms: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    levels: Dict[str, float] = field(default_factory=dict)
    distilled: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        known = [
            (n, f"{v:.1f}")
            for n, v in (("teacher", self.teacher), ("student", self.student))
            if v is not None
        ]
        if known:
            parts.append(tabulate(known, ["on your images", "AP50, any class"]))
        if self.terms:
            rows = [
                (n, f"{share:.1%}", f"{cosine:+.3f}") for n, (share, cosine) in self.terms.items()
            ]
            parts.append(tabulate(rows, ["term", "of the detector's gradient", "cosine with it"]))
        if self.levels:
            rows = [(name, f"{value:.3f}") for name, value in self.levels.items()]
            parts.append(tabulate(rows, ["level", "student and teacher alike (CKA)"]))
        words = [f"- {f.name}: {f.text}" for f in self.findings] or [NOTHING_FOUND]
        words += [f"- note: {note}" for note in self.notes]
        return "\n\n".join([*parts, "\n".join(words)])
