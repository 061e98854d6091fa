"""How the pieces fit: the picture of docs/code_map.md, drawn by ``make results``."""

from typing import Tuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .common.result_plots import save

STUDENT, TEACHER, DISTILLER, PLAIN = "#cfe2f3", "#d9d9d9", "#fce5cd", "#ffffff"
# text, its center, width and height, color
BOXES = {
    "images": ("images", (0.8, 2.0), 1.2, 0.7, PLAIN),
    "backbone": ("student: backbone, FPN\n(any Detectron2 model)", (3.5, 3.2), 2.8, 1.0, STUDENT),
    "heads": ("student: its heads", (7.2, 3.2), 2.1, 1.0, STUDENT),
    "teacher": (
        "FrozenTeacher: backbone, FPN\nno gradient, own colors and\n"
        "normalization, in no checkpoint",
        (3.5, 0.6), 3.1, 1.1, TEACHER,
    ),
    "pairs": ("maps in pairs,\nby stride", (6.2, 1.6), 1.6, 0.8, DISTILLER),
    "distiller": ("Distiller\n(SKD or another method)", (8.7, 1.6), 2.5, 0.8, DISTILLER),
    "balance": (
        "GradientBalance:\nshares of the\ndetector's gradient", (11.6, 1.6), 2.1, 1.1, DISTILLER,
    ),
    "losses": (
        "losses, one dict:\nloss_mask, ...\nloss_distill_...", (11.6, 3.2), 2.1, 1.0, PLAIN,
    ),
    "trainer": ("any trainer", (14.0, 3.2), 1.5, 0.7, PLAIN),
    "after": (
        "afterwards: the student's checkpoint and config,\n"
        "plain Detectron2; the rest is taken away",
        (11.9, 0.3), 5.0, 0.7, STUDENT,
    ),
}  # fmt: skip
ARROWS = [
    ("images", "backbone"), ("images", "teacher"), ("backbone", "heads"), ("heads", "losses"),
    ("backbone", "pairs"), ("teacher", "pairs"), ("pairs", "distiller"), ("distiller", "balance"),
    ("balance", "losses"), ("losses", "trainer"),
]  # fmt: skip


def draw_pieces(folder: str, path: str) -> bool:
    """Write the picture. Returns True: it needs no results."""
    figure = plt.figure(figsize=(11, 3.3))
    ax = figure.add_axes((0, 0, 1, 1))
    for text, center, width, height, color in BOXES.values():
        corner = center[0] - width / 2, center[1] - height / 2
        ax.add_patch(plt.Rectangle(corner, width, height, facecolor=color, edgecolor="0.3"))
        ax.text(*center, text, ha="center", va="center", fontsize=8.5)
    for start, end in ARROWS:
        _arrow(ax, start, end)
    ax.set(xlim=(0, 15), ylim=(-0.2, 3.9))
    ax.axis("off")
    save(figure, path)
    return True


def _arrow(ax: Axes, start: str, end: str) -> None:
    """Draw a straight arrow from border to border."""
    ends = _border(start, BOXES[end][1]), _border(end, BOXES[start][1])
    ax.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "->", "color": "0.3"})


def _border(name: str, towards: Tuple[float, float]) -> Tuple[float, float]:
    """The point where the line from a box's center to a point leaves the box."""
    _, (x, y), width, height, _ = BOXES[name]
    dx, dy = towards[0] - x, towards[1] - y
    scale = min(width / 2 / abs(dx or 1e-9), height / 2 / abs(dy or 1e-9))
    return x + scale * dx, y + scale * dy
