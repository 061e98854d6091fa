"""What a run's metrics.json says. Metrics are 0 to 100; names are Detectron2's."""

import logging
import math
import os
import re
import statistics
from functools import lru_cache
from typing import Any, Dict, List, Optional

from .result_files import read_lines

logger = logging.getLogger(__name__)

# Each metric's name in tables. The first of these that a run has is its main metric.
METRICS = {
    "bbox/AP": "box AP",
    "segm/AP": "mask AP",
    "keypoints/AP": "keypoint AP",
    "panoptic_seg/PQ": "PQ",
    "sem_seg/mIoU": "mIoU",
}
_SHARE, _OWN_NORM, _ALIKE = "distill/share_", "distill/norm_detector", "distill/cka_"
TASKS = {"bbox": "box AP", "segm": "mask AP"}
# with several test sets Detectron2 puts "DATASET/" before it
_METRIC = re.compile(
    r"(?:.+/)?(?:(?:bbox|segm|keypoints)/AP(?:50|75|s|m|l)?|panoptic_seg/PQ|sem_seg/mIoU)"
)


def read_metrics(folder: str) -> List[Dict]:
    """
    The rows of metrics.json; none if it is not there yet. What is no number there is left out, with
    a warning.
    """
    path = os.path.join(folder, "metrics.json")
    found = read_lines(path)
    rows = [{k: v for k, v in row.items() if isinstance(v, (int, float))} for row in found]
    strange = [key for old, row in zip(found, rows) for key in old if key not in row]
    if strange:
        _warn(path, strange[0])
    return [row for row in rows if "iteration" in row]


@lru_cache(maxsize=None)  # once: a file is read again and again while a run is at work
def _warn(path: str, key: str) -> None:
    logger.warning(f"'{path}' has something else than a number as {key!r:.100}; it is left out.")


def main_metrics(row: Dict) -> List[str]:
    """The keys of a row that are main metrics of a task, in the order of ``METRICS``."""
    found = [key for key in row if title_of(key)]
    order = list(METRICS.values())
    return sorted(found, key=lambda key: (order.index(title_of(key).split(",")[0]), key))


def title_of(key: str) -> str:
    """A main metric's name in tables, "" for any other key."""
    for metric, title in METRICS.items():
        if key == metric:
            return title
        if key.endswith("/" + metric):
            return f"{title}, {key.removesuffix(f'/{metric}')}"
    return ""


def evaluations(rows: List[Dict]) -> List[Dict]:
    """The rows that hold an evaluation."""
    return [row for row in rows if main_metrics(row)]


def scores(row: Dict) -> Dict[str, Optional[float]]:
    """
    The metrics of a row. None where there is no object of a size; 0 where Detectron2 has nan,
    because the model found nothing at all; nan where it found something, and the dataset has no
    object that counts. (Detectron2 has metrics of each class then, but of a single class: 0.)
    """
    return {key: _score(key, row) for key in row if _METRIC.fullmatch(key)}


def _score(key: str, row: Dict) -> Optional[float]:
    main = re.sub(r"/AP(50|75|s|m|l)$", "/AP", key)
    if math.isnan(row.get(main, math.nan)):
        of_classes = any(other.startswith(f"{main}-") for other in row)
        return row[key] if of_classes else 0.0
    return None if math.isnan(row[key]) else round(row[key], 3)


def distillation(rows: List[Dict]) -> Dict[str, Any]:
    """
    What distillation did in a run, from the rows of its metrics.json.

    Returns:
        ``detector_loss``, the sum of the detector's own, and ``norm_detector``, of its gradient;
        ``terms``, by name: ``share`` (of the detector's gradient, a part of 1) and ``cosine``, both
        means over the part of the run that has a teacher, and ``last_share``, ``weight`` and
        ``norm`` (of the gradient without the weight), both None where the terms were not balanced.
        All but the means are of the end of that part.

        ``levels``, by name: ``first`` and ``last`` of how alike student's and teacher's maps were
        (CKA), in that part. Older runs have none.
    """
    levels = _levels(rows)
    rows = [row for row in rows if any(key.startswith(_SHARE) for key in row)]
    if not rows:
        return {"terms": {}, "levels": levels} if levels else {}
    last = rows[-1]
    terms = {}
    for name in (key.removeprefix(_SHARE) for key in last if key.startswith(_SHARE)):
        terms[name] = {
            "share": _mean(rows, f"{_SHARE}{name}"),
            "cosine": _mean(rows, f"distill/cosine_{name}"),
            "last_share": last[f"{_SHARE}{name}"],
            "weight": last.get(f"distill/weight_{name}"),
            "norm": last.get(f"distill/norm_{name}"),
        }
    own = {"detector_loss": last.get("detector_loss"), "norm_detector": last.get(_OWN_NORM)}
    return {**own, "terms": terms, **({"levels": levels} if levels else {})}


def _levels(rows: List[Dict]) -> Dict[str, Dict[str, float]]:
    found: Dict[str, List[float]] = {}
    for row in rows:
        for key in (key for key in row if key.startswith(_ALIKE)):
            found.setdefault(key.removeprefix(_ALIKE), []).append(row[key])
    return {name: {"first": seen[0], "last": seen[-1]} for name, seen in found.items()}


def _mean(rows: List[Dict], key: str) -> Optional[float]:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None


def seconds_per_iteration(rows: List[Dict]) -> Optional[float]:
    """
    The mean of what Detectron2 wrote, evaluations left out; None if it wrote nothing. A teacher
    that stops early makes no step of a run typical of all.
    """
    times = [row["time"] for row in rows if row.get("time", 0) > 0]
    return round(statistics.mean(times), 4) if times else None


def peak_memory_mb(rows: List[Dict]) -> Optional[int]:
    """The last that a trainer wrote, see ``PeakMemory``; None if it wrote nothing."""
    peaks = [row["peak_memory_mb"] for row in rows if "peak_memory_mb" in row]
    return round(peaks[-1]) if peaks else None


def commits(folder: str) -> List[str]:
    """This project's commits that began and resumed a run; "+" where files were changed."""
    states = [row.get("git") or {} for row in read_lines(os.path.join(folder, "runs.jsonl"))]
    named = [git["commit"][:12] + "+" * git["changed"] for git in states if git.get("commit")]
    return list(dict.fromkeys(named))


def read_ap(folder: str) -> Dict[str, float]:
    """The last evaluation of a run: AP of boxes and masks, 0 to 100, by task."""
    done = evaluations(read_metrics(folder))
    if not done:
        raise ValueError(f"'{folder}' holds no evaluation.")
    return {task: done[-1][f"{task}/AP"] for task in TASKS if f"{task}/AP" in done[-1]}
