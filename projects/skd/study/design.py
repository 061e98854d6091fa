"""What tools/compare.py runs: detectors x methods x teachers x seeds, read from a study file."""

import math
import os
import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from skd import distill
from skd.config import is_lazy_file, lazy, read_config
from skd.config.safe_yaml import read_yaml
from skd.distillers import build_distiller
from skd.runtime.safe_files import is_url

from .runs import Run, read_metrics

BASELINE = "baseline"
KEYS = {"iterations", "seeds", "opts", "teachers", "detectors", "methods", "compare"}


@dataclass
class Cell(Run):
    """One training of the study, or one teacher."""

    detector: str = ""
    method: str = ""
    teacher: str = ""
    seed: int = 0

    def result(self) -> Dict[str, Any]:
        """A line of results.jsonl; AP are 0 to 100, ``curve`` is [iteration, box AP] pairs."""
        done = self.finished()
        row = {
            "detector": self.detector,
            "method": self.method,
            "teacher": self.teacher,
            "seed": self.seed,
            "iterations": self.iterations,
            "status": "done" if done else "failed" if self.error else "not run",
            "command": shlex.join(["python", *self.command()[1:]]),
        }
        evaluations = [r for r in read_metrics(self.folder) if "bbox/AP" in r]
        if done:
            last = evaluations[-1]
            row["ap"] = {
                k: _number(v, last[f"{k.split('/')[0]}/AP"])
                for k, v in last.items()
                if re.fullmatch(r"(bbox|segm)/AP(50|75|s|m|l)?", k)
            }
            row["curve"] = [
                [min(r["iteration"] + 1, self.iterations), _number(r["bbox/AP"], r["bbox/AP"])]
                for r in evaluations
            ]
        elif self.error:
            row["error"] = self.error
        return row


def _number(value: float, ap: float) -> Optional[float]:
    """None where there is no object of a size; Detectron2 gives nan for a model without any box."""
    if math.isnan(ap):
        return 0.0
    return None if math.isnan(value) else round(value, 3)


@dataclass
class Comparison:
    """One table of the report: cells of one detector with one teacher, or along teachers."""

    name: str
    cells: List[Cell] = field(default_factory=list)


class Study:
    """
    Args:
        spec: the content of a study file (configs/shapes/study.yaml explains it).
        work: folder of the runs' folders.
        flags: further flags of train_net.py for every run.

    Raises:
        ValueError: something in it is missing, unknown or of the wrong type; says what.
    """

    def __init__(self, spec: Dict[str, Any], work: str, flags: List[str] = ()):
        self.spec, self.work, self.flags = spec, work, list(flags)
        unknown = sorted(set(spec) - KEYS)
        missing = sorted(KEYS - {"opts"} - set(spec))
        if unknown or missing:
            raise ValueError(
                f"The study has the keys {sorted(spec)}"
                + (f"; unknown: {unknown}" if unknown else "")
                + (f"; missing: {missing}" if missing else "")
                + f". Possible are {sorted(KEYS)}."
            )
        self.methods = {BASELINE: {}, **spec["methods"]}
        self.cells: Dict[str, Cell] = {}
        self.teachers = {name: self._teacher(name) for name in spec["teachers"]}
        self.comparisons = [self._comparison(entry) for entry in spec["compare"]]

    def runs(self) -> List[Cell]:
        """All cells once, seed by seed, so that a part is of use; teachers by their name."""
        order = {cell.folder: i for i, cell in enumerate(self.cells.values())}

        def place(cell):
            trained = cell.method == "teacher" and cell.iterations > 0
            return (1 if trained else cell.seed, trained, order[cell.folder])

        return sorted(self.cells.values(), key=place)

    def check(self) -> None:
        """Read every config as train_net.py will. Raises ValueError, KeyError or OSError."""
        for teacher in self.teachers.values():
            if is_url(teacher.config) and is_lazy_file(teacher.config):
                lazy.check_allowed(teacher.config, teacher.config, "A teacher's config")
        for cell in self.cells.values():
            if is_lazy_file(cell.config):
                lazy.check_allowed(cell.config, cell.config, "A detector's config")
                continue  # Python: train_net.py tells
            cfg = read_config(cell.config)
            if cell.method not in (BASELINE, "teacher"):
                distill(cfg, cell.config)
            cfg.merge_from_list(list(cell.opts))
            if cell.method not in (BASELINE, "teacher"):
                build_distiller(cfg)

    def _pick(self, what: str, name: str) -> Any:
        known = self.methods if what == "methods" else self.spec[what]
        if name not in known:
            raise ValueError(f"'{name}' is none of the study's {what}: {', '.join(known)}.")
        return known[name] or {}

    def _folder(self, *names: str) -> str:
        # names are for people; a folder is not to escape from --work
        return os.path.join(self.work, *(re.sub(r"[^\w.+-]+", "_", n).strip(".") for n in names))

    def _opts(self, settings: Dict[str, Any]) -> List[str]:
        return [*map(str, self.spec.get("opts") or [])] + [
            str(part) for pair in settings.items() for part in pair
        ]

    def _teacher(self, name: str) -> Cell:
        entry = self.spec["teachers"][name]
        if "config" not in entry or ("weights" in entry) == ("iterations" in entry):
            raise ValueError(
                f"Teacher '{name}' is {entry}; it must have 'config' and either 'weights' (trained "
                "already) or 'iterations' (to be trained)."
            )
        iterations = int(entry.get("iterations", 0))
        weights = [] if iterations else ["MODEL.WEIGHTS", entry["weights"]]
        folder = self._folder("teachers", name)
        cell = Cell(
            f"teacher {name}", entry["config"], folder, iterations,
            [*self._opts(entry.get("opts") or {}), *weights], self.flags,
            detector="teacher", method="teacher", teacher=name,
        )  # fmt: skip
        if iterations or os.path.exists(entry["config"]):  # a zoo name is not evaluated
            self.cells[folder] = cell
        return cell

    def _cell(self, detector: str, method: str, teacher: str, seed: int) -> Cell:
        student = self._pick("detectors", detector)
        settings = self._pick("methods", method)
        settings = {**student.get("opts", {}), **settings.get(detector, settings)}
        opts = [*self._opts(settings), "SEED", str(seed)]
        flags, after, label = list(self.flags), None, method
        if method == BASELINE:
            teacher = ""
        else:
            self._pick("teachers", teacher)
            entry, source = self.spec["teachers"][teacher], self.teachers[teacher]
            weights = entry.get("weights") or os.path.join(source.folder, "model_final.pth")
            flags += ["--teacher", entry["config"], "--teacher-weights", weights]
            after = source if source.iterations else None
            if teacher != next(iter(self.spec["teachers"])):
                label = f"{method} from {teacher}"
        folder = self._folder(detector, label, f"seed{seed}")
        if folder not in self.cells:
            self.cells[folder] = Cell(
                f"{detector}, {label}, {seed}", student["config"], folder,
                int(student.get("iterations", self.spec["iterations"])), opts, flags, after,
                detector=detector, method=method, teacher=teacher, seed=seed,
            )  # fmt: skip
        return self.cells[folder]

    def _comparison(self, entry: Dict[str, Any]) -> Comparison:
        default = next(iter(self.spec["teachers"]))
        out = Comparison(entry["name"])
        for seed in entry.get("seeds", self.spec["seeds"]):
            for teacher in entry.get("teachers", [default]):
                for method in entry["methods"]:
                    cell = self._cell(entry["detector"], method, teacher, int(seed))
                    if cell not in out.cells:
                        out.cells.append(cell)
        return out


def load_study(path: str) -> Optional[Dict[str, Any]]:
    spec = read_yaml(path)
    if not isinstance(spec, dict):
        raise ValueError(f"'{path}' is no study: it must be a YAML file of keys and values.")
    return spec
