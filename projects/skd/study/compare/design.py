"""What tools/compare.py runs: detectors x methods x teachers x seeds, read from a study file."""

import os
import re
import shlex
from dataclasses import dataclass, field, replace
from typing import Any, Container, Dict, List, Optional, Sequence, Set, Tuple

from ...config import (
    distill,
    is_distilling,
    is_lazy_file,
    lazy_config,
    read_config,
    run_settings,
    yaml_config,
)
from ...config.keys import NODES
from ...config.methods import build_distiller
from ...config.safe_yaml import read_yaml
from ...engine.run import check_registered
from ...modeling.model_zoo import find_config
from ...runtime.downloads import is_url
from ..common.methods import check_not_combined
from ..common.metrics import (
    commits,
    distillation,
    evaluations,
    main_metrics,
    peak_memory_mb,
    scores,
    seconds_per_iteration,
)
from ..common.paths import find_file
from ..common.result_files import BASELINE, write_text
from ..common.runs import ChildRun, fits
from .schema import check_options, check_study

TEACHERS = "teachers"  # the folder of their runs
TEACHER_OPTS = ("MODEL.TEACHER.OPTS", "model.teacher.opts")
ERROR = "error.txt"  # in a run's folder: why it failed, until it is started again
# how the keys of images without labels begin, in both forms
UNLABELLED = tuple(
    run_settings.keys_of(f)["unlabelled"] for f in (run_settings.YAML, run_settings.LAZY)
)


@dataclass
class StudyRun(ChildRun):
    """One training of the study, or one teacher."""

    detector: str = ""
    method: str = ""
    teacher: str = ""
    seed: int = 0
    earlier: Optional[Dict[str, Any]] = None  # its line in the results of an earlier call
    implied: int = 0  # how many of ``opts``, the first, earlier versions did not write

    def commands(self) -> List[List[str]]:
        """Its command, and what earlier versions wrote, which built a teacher by its file alone."""
        former = replace(self, opts=self.opts[self.implied :])
        return [self.command(), former.command()]

    def known(self) -> bool:
        """Whether there is nothing to run: it is done, or diverged in an earlier call."""
        return self.earlier is not None or self.finished()

    def done(self) -> bool:
        """Whether it has come to its end, here or in an earlier call."""
        earlier = self.earlier is not None and self.earlier["status"] == "done"
        return earlier or self.finished()

    def result(self) -> Dict[str, Any]:
        """A line of results.jsonl; ``curve`` is [iteration, the main metric] pairs."""
        done, failure = self.finished(), self.failure()
        if self.earlier is not None and not done:
            return self.earlier
        row = {
            "detector": self.detector,
            "method": self.method,
            "teacher": self.teacher,
            "seed": self.seed,
            "iterations": self.iterations,
            "status": "done" if done else "failed" if failure else "not run",
            "command": shlex.join(["python", *self.command()[1:]]),
        }
        if done:
            row.update(self.measured())
        elif failure:
            row["error"] = failure
        return row

    def failure(self) -> str:
        """Why it failed, in this call of the command or an earlier one; "" if it did not."""
        path = os.path.join(self.folder, ERROR)
        if self.error or not os.path.isfile(path):
            return self.error
        with open(path, errors="replace") as f:
            return f.read()

    def note_failure(self) -> None:
        """Keep the error for later calls that do not run it."""
        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, ERROR)
        write_text(path, self.error)

    def start(self, *args: Any, **kwargs: Any) -> None:
        if os.path.exists(os.path.join(self.folder, ERROR)):
            os.remove(os.path.join(self.folder, ERROR))
        super().start(*args, **kwargs)

    def measured(self) -> Dict[str, Any]:
        """The last evaluation up to now, and the curve; empty if there is none."""
        written = self.rows()
        rows = evaluations(written)
        if not rows:
            return {}
        metric = main_metrics(rows[-1])[0]
        curve = [
            [min(r["iteration"] + 1, self.iterations), scores(r)[metric]]
            for r in rows
            if metric in r
        ]
        seen = {"ap": scores(rows[-1]), "metric": metric, "curve": curve}
        seen["seconds_per_iteration"] = seconds_per_iteration(written)
        seen["peak_memory_mb"] = peak_memory_mb(written)
        seen["commits"] = commits(self.folder)
        terms = distillation(written)
        return {**seen, "distillation": terms} if terms else seen


def _shapes_model(key: str) -> bool:
    """Whether an option of a detector's training says how the detector is made."""
    path = key.lstrip("+")
    others = ("MODEL.WEIGHTS", "MODEL.DEVICE", *(f"MODEL.{node}." for node in NODES))
    return path.startswith(("MODEL.", "model.", "INPUT.FORMAT")) and not path.startswith(others)


def options_of_part(part: str, opts: List[str], own: Container[str]) -> List[str]:
    """
    Options for a run of the "student" or the "teacher" by itself. They are written for the runs
    that distil, where ``model`` of a LazyConfig has both in it; a YAML config's keys stay in place.
    Images without labels are left out: without a teacher they are an error.

    Args:
        own: keys that are written for this run.
    """
    kept = []
    for key, value in zip(opts[::2], opts[1::2]):
        path = key.lstrip("+")  # of Hydra's grammar: a key that is new
        if path.startswith(UNLABELLED) and key not in own:
            continue
        if key in own or not path.startswith("model."):
            kept += [key, value]
        elif path.startswith("model.student.") and part == "student":
            kept += [f"model.{path.removeprefix('model.student.')}", value]
    return kept


@dataclass
class Comparison:
    """One table of the report: runs of one detector with one teacher, or along teachers."""

    name: str
    runs: List[StudyRun] = field(default_factory=list)


class Study:
    """
    Args:
        spec: the content of a study file (configs/shapes/study.yaml explains it).
        work: folder of the runs' folders.
        flags: further flags of train_net for every run.
        trusted: the options are of the command line, not of a file.

    Raises:
        UnsafeConfigError: options of a file that would run code.
        ValueError: something in it is missing, unknown or of the wrong type; says what.
    """

    def __init__(
        self, spec: Dict[str, Any], work: str, flags: Sequence[str] = (), trusted: bool = False
    ):
        self.spec, self.work, self.flags = spec, work, list(flags)
        check_study(spec)
        if not trusted:
            check_options(spec)
        self.methods = {BASELINE: {}, **spec["methods"]}
        self.by_folder: Dict[str, StudyRun] = {}
        self._owners: Dict[str, Tuple[str, ...]] = {}
        self.teachers = {name: self._teacher(name) for name in spec["teachers"]}
        self.comparisons = [self._comparison(entry) for entry in spec["compare"]]

    def runs(self, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> List[StudyRun]:
        """
        All runs once, seed by seed, so that a part is of use; teachers by their name.

        Args:
            only: names of tables; those of these, and their teachers.
            seeds: those of these seeds, and their teachers.

        Raises:
            ValueError: no table has the name, or no run of these tables the seed.
        """
        order = {run.folder: i for i, run in enumerate(self.by_folder.values())}
        wanted = self._runs_of(only, seeds)

        def place(run):
            trained = run.method == "teacher" and run.iterations > 0
            return (1 if trained else run.seed, trained, order[run.folder])

        return sorted((r for r in self.by_folder.values() if r.folder in wanted), key=place)

    def _runs_of(self, tables: Sequence[str], seeds: Sequence[int]) -> Set[str]:
        """The folders of a few runs and of their teachers; of all runs without a table or seed."""
        if not tables and not seeds:
            return set(self.by_folder)
        names = [comparison.name for comparison in self.comparisons]
        unknown = [name for name in tables if name not in names]
        if unknown:
            raise ValueError(f"'{unknown[0]}' is none of the study's tables: {', '.join(names)}.")
        runs = [r for c in self.comparisons if c.name in (tables or names) for r in c.runs]
        known = sorted({run.seed for run in runs})
        for seed in seeds:
            if seed not in known:
                raise ValueError(f"--seeds has {seed}; it must be of {', '.join(map(str, known))}.")
        runs = [run for run in runs if run.seed in (seeds or known)]
        teachers = [self.teachers[run.teacher] for run in runs if run.teacher]
        return {run.folder for run in (*runs, *teachers)}

    def check(self) -> None:
        """Read every config as train_net will. Raises ValueError, KeyError or OSError."""
        for teacher in self.teachers.values():
            if is_url(teacher.config) and is_lazy_file(teacher.config):
                lazy_config.check_allowed(teacher.config, teacher.config, "A teacher's config")
        for run in self.by_folder.values():
            if is_lazy_file(run.config):
                lazy_config.check_allowed(run.config, run.config, "A detector's config")
                run.command()  # or an error: keys without a counterpart
                continue  # Python: train_net tells
            cfg = read_config(run.config)
            if run.method not in (BASELINE, "teacher"):
                distill(cfg, run.config)
            elif run.method == BASELINE and is_distilling(cfg):
                raise ValueError(
                    f"'{run.config}' of detector '{run.detector}' distils; a study needs the "
                    "config of the student without a teacher."
                )
            yaml_config.merge_options(cfg, run.opts)
            if not cfg.DATASETS.TEST:
                raise ValueError(f"DATASETS.TEST of '{run.name}' is empty: nothing to compare.")
            if run.method not in (BASELINE, "teacher"):
                if "MODEL.DISTILLER.NAME" in self._own(run.method, run.detector):
                    check_not_combined(cfg, f"the method '{run.method}'")
                build_distiller(cfg)

    def check_files(self) -> None:
        """
        What runs need and a report does not.

        Raises:
            FileNotFoundError, ValueError: a teacher or a dataset that is not there.
        """
        for name, teacher in self.teachers.items():
            if not is_url(teacher.config):
                find_config(teacher.config)  # or an error
            weights = find_file(self.spec["teachers"][name].get("weights") or "")
            if weights and not is_url(weights) and not os.path.isfile(weights):
                raise FileNotFoundError(f"Teacher '{name}': no checkpoint '{weights}'.")
        for run in self.by_folder.values():
            if is_lazy_file(run.config):
                continue  # Python: train_net tells
            cfg = read_config(run.config)
            yaml_config.merge_options(cfg, run.opts)
            for key in ("TRAIN", "TEST") if run.iterations else ("TEST",):
                check_registered(f"'{run.name}': DATASETS.{key}", cfg.DATASETS[key])

    def _pick(self, what: str, name: str) -> Any:
        known = self.methods if what == "methods" else self.spec[what]
        if name not in known:
            raise ValueError(f"'{name}' is none of the study's {what}: {', '.join(known)}.")
        return known[name] or {}

    def _folder(self, *names: str) -> str:
        # names are for people; a folder is not to escape from --work
        parts = [re.sub(r"[^\w.+-]+", "_", name).strip(".") for name in names]
        folder = os.path.join(self.work, *parts)
        # of a file system that does not tell upper from lower case
        owner = self._owners.setdefault(folder.lower(), names)
        reserved = names[0] == TEACHERS or parts[0].lower() != TEACHERS
        if owner != names or not all(parts) or not reserved:
            other = "the teachers' runs" if owner == names else f"'{', '.join(owner)}'"
            raise ValueError(
                f"'{', '.join(names)}' would share the folder '{folder}' with {other}: choose "
                "names that differ in letters or digits."
            )
        return folder

    def _opts(self, settings: Dict[str, Any]) -> List[str]:
        return [*map(str, self.spec.get("opts") or [])] + [
            str(part) for pair in settings.items() for part in pair
        ]

    def _teacher(self, name: str) -> StudyRun:
        entry = self.spec["teachers"][name]
        if "config" not in entry or ("weights" in entry) == ("iterations" in entry):
            raise ValueError(
                f"Teacher '{name}' is {entry}; it must have 'config' and either 'weights' (trained "
                "already) or 'iterations' (to be trained)."
            )
        iterations = int(entry.get("iterations", 0))
        config, given = find_file(entry["config"]), entry.get("weights")
        weights = ["MODEL.WEIGHTS", find_file(given)] if given else []
        own = entry.get("opts") or {}
        opts = options_of_part("teacher", self._opts(own), own)
        pairs = zip(opts[::2], opts[1::2])  # of a student of the other form, some say nothing here
        opts = [part for pair in pairs if pair[0] in own or fits(config, pair[0]) for part in pair]
        folder = self._folder(TEACHERS, name)
        run = StudyRun(
            f"teacher {name}", config, folder, iterations,
            [*opts, *weights], self.flags,
            detector="teacher", method="teacher", teacher=name,
        )  # fmt: skip
        if iterations or os.path.exists(config):  # a zoo name is not evaluated
            self.by_folder[folder] = run
        return run

    def _run(self, detector: str, method: str, teacher: str, seed: int) -> StudyRun:
        student = self._pick("detectors", detector)
        own, implied = self._own(method, detector), []
        opts = [*self._opts({**student.get("opts", {}), **own}), "SEED", str(seed)]
        flags, after, label = list(self.flags), None, method
        if method == BASELINE:
            teacher, opts = "", options_of_part("student", opts, own)
        else:
            self._pick("teachers", teacher)
            entry, source = self.spec["teachers"][teacher], self.teachers[teacher]
            weights = find_file(entry.get("weights") or "")
            if source.iterations:
                weights = os.path.join(source.folder, "model_final.pth")
            flags += ["--teacher", source.config]
            flags += ["--teacher-weights", weights] if weights else []
            implied = self._built_with(teacher, student["config"], opts)
            opts = [*implied, *opts]
            after = source if source.iterations else None
            if teacher != next(iter(self.spec["teachers"])):
                label = f"{method} from {teacher}"
        folder = self._folder(detector, label, f"seed{seed}")
        if folder not in self.by_folder:
            self.by_folder[folder] = StudyRun(
                f"{detector}, {label}, {seed}", find_file(student["config"]), folder,
                int(student.get("iterations", self.spec["iterations"])), opts, flags, after,
                detector=detector, method=method, teacher=teacher, seed=seed, implied=len(implied),
            )  # fmt: skip
        return self.by_folder[folder]

    def _built_with(self, teacher: str, config: str, opts: Sequence[str]) -> List[str]:
        """
        The option by which a student's run builds a teacher as the study does, where more than its
        config file says how: else its weights would not fit, after it has been trained.

        Args:
            config: the student's.
            opts: of its run, which may have that option already.
        """
        entry, source = self.spec["teachers"][teacher], self.teachers[teacher]
        own = entry.get("opts") or {}
        pairs = [
            (key, value)
            for key, value in zip(source.opts[::2], source.opts[1::2])
            if _shapes_model(key) and (key in own or source.iterations)
        ]
        if not pairs or any(key.lstrip("+") in TEACHER_OPTS for key in opts[::2]):
            return []
        lazy_teacher, lazy_student = (is_lazy_file(x) for x in (source.config, config))
        parts = [f"{k}={v}" for k, v in pairs] if lazy_teacher else [x for p in pairs for x in p]
        yaml_key, lazy_key = TEACHER_OPTS
        return [f"++{lazy_key}" if lazy_student else yaml_key, str(parts)]

    def _own(self, method: str, detector: str) -> Dict[str, Any]:
        """A method's keys, of which a detector may have its own."""
        settings = self._pick("methods", method)
        return settings.get(detector, settings)

    def _comparison(self, entry: Dict[str, Any]) -> Comparison:
        default = next(iter(self.spec["teachers"]))
        out = Comparison(entry["name"])
        for seed in entry.get("seeds", self.spec["seeds"]):
            for teacher in entry.get("teachers", [default]):
                for method in entry["methods"]:
                    run = self._run(entry["detector"], method, teacher, int(seed))
                    if run not in out.runs:
                        out.runs.append(run)
        return out


def load_study(path: str) -> Dict[str, Any]:
    """
    Raises:
        ValueError: it is no YAML file of keys and values.
    """
    spec = read_yaml(find_file(path))
    if not isinstance(spec, dict):
        raise ValueError(f"'{path}' is no study: it must be a YAML file of keys and values.")
    return spec
