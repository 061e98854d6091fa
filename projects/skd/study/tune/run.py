"""What tools/tune.py does."""

import argparse
import glob
import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from detectron2.config import CfgNode

from ...config import Config, distill, form_of, is_distilling, read_config, run_settings
from ...config.lazy_config import allow
from ...engine.run import check_registered
from ...runtime import lock
from ..common.command import RunError, set_up, setup_flags
from ..common.devices import default_jobs, default_threads, same_threads, visible_gpus
from ..common.metrics import evaluations, main_metrics, scores
from ..common.paths import find_file
from ..common.result_files import BASELINE, DIVERGED, make_output, write_text
from ..common.runs import least_used, option_pairs, options_for, stop, stop_on_sigterm
from ..compare.design import StudyRun, options_of_part
from .held_out import hold_out
from .results import print_results, write_tuning
from .search import Attempt, Rungs, Search, options
from .spaces import spaces_of

POLL = 1.0  # seconds between two looks at the runs


@dataclass
class TrialRun(StudyRun):
    """A trial's training, or the baseline's, which has no ``attempt``."""

    attempt: Optional[Attempt] = None
    settings: Dict[str, Any] = field(default_factory=dict)

    def values(self, metric: str = "") -> List[Tuple[int, float]]:
        """
        Iterations and what the model had by then.

        Args:
            metric: Detectron2's name; the first main metric if empty.

        Raises:
            ValueError: the evaluation has no such metric.
        """
        found = []
        for row in evaluations(self.rows()):
            known = scores(row)
            if metric and metric not in known:
                raise ValueError(f"--metric is {metric}; it must be one of {', '.join(known)}.")
            value = known[metric or main_metrics(row)[0]]
            found.append((min(row["iteration"] + 1, self.iterations), value or 0.0))
        return found

    def result(self) -> Dict[str, Any]:
        row = super().result()
        if self.attempt is None:
            return row
        row.update(trial=self.attempt.number, settings=self.settings)
        if self.attempt.pruned and not self.failure():
            row.pop("error", None)
            row.update(self.measured(), status="pruned")
        return row


class Clock:
    """Minutes used up to now, over all calls of the command for one folder."""

    def __init__(self, path: str):
        self.path, self.begin, self.before = path, time.monotonic(), 0.0
        if os.path.exists(path):
            with open(path) as f:
                self.before = float(json.load(f))

    def __call__(self) -> float:
        return self.before + (time.monotonic() - self.begin) / 60

    def save(self) -> None:
        write_text(self.path, json.dumps(self()))


class Tuning:
    """
    A search, and the runs that belong to it.

    Args:
        args: of the command line.

    Raises:
        ValueError, KeyError, OSError: what the user gave cannot be tuned; says why.
    """

    def __init__(self, args: argparse.Namespace):
        if args.trials is None and args.minutes is None:
            raise ValueError("There is no budget: give --trials, --minutes, or both.")
        for name in ("trials", "minutes"):
            value = getattr(args, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}; it must be above 0.")
        set_up(args)
        self.args, self.work, self.opts = args, args.work, option_pairs(args.opts)
        self.config, self.teacher = find_file(args.config_file), find_file(args.teacher)
        cfg = self._config()
        self.form = run_settings.form_name(cfg)
        self.iterations = args.iterations or run_settings.value_of(cfg, "max_iter")
        self.seed = args.seed
        self.rungs = Rungs.of(self.iterations, args.rungs, args.factor)
        self.spaces = spaces_of(cfg, self._override, args.methods, args.levels, self.iterations)
        self.flags, self.datasets = self._datasets(cfg)
        self._same_search()
        self.clock = Clock(os.path.join(self.work, "minutes.json"))
        self.search = Search(
            os.path.join(self.work, "journal.log"), self.spaces, self.rungs, seed=self.seed,
            trials=args.trials, minutes=args.minutes, spent=self.clock,
        )  # fmt: skip
        self.baseline = self._run(BASELINE, [BASELINE])
        self._made: Dict[Tuple[str, int], TrialRun] = {}

    def runs(self) -> List[TrialRun]:
        """The baseline, and a run for each trial begun."""
        return [self.baseline, *map(self.run_of, self.search.attempts())]

    def run_of(self, attempt: Attempt) -> TrialRun:
        """The same one each time."""
        key = attempt.method, attempt.number
        if key not in self._made:
            space = self.spaces[attempt.method]
            settings = options(attempt.method, attempt.settings, space, self.iterations, self.form)
            names = [attempt.method, f"trial{attempt.number:03}"]
            self._made[key] = self._run(attempt.method, names, settings, attempt)
        return self._made[key]

    def teacher_flags(self) -> List[str]:
        weights = find_file(self.args.teacher_weights or "")
        return ["--teacher", self.teacher, *(["--teacher-weights", weights] if weights else [])]

    def _run(
        self,
        method: str,
        folder: List[str],
        settings: Optional[Dict[str, Any]] = None,
        attempt: Optional[Attempt] = None,
    ) -> TrialRun:
        parts = [str(part) for pair in (settings or {}).items() for part in pair]
        own = ["TEST.EVAL_PERIOD", str(self.rungs.period), "SEED", str(self.seed)]
        opts = self.opts if attempt else options_of_part("student", self.opts, ())
        return TrialRun(
            ", ".join(folder), self.config, os.path.join(self.work, *folder), self.iterations,
            [*opts, *self.datasets, *own, *parts],
            [*self.flags, *(self.teacher_flags() if attempt else [])],
            detector=os.path.splitext(os.path.basename(self.config))[0], method=method,
            teacher=self.teacher if attempt else "", seed=self.seed,
            attempt=attempt, settings=settings or {},
        )  # fmt: skip

    def _config(self) -> Config:
        """The student's, which distils, with what every run gets."""
        for path in (self.config, self.teacher):
            allow(path)  # Python or not: the user has named it
        cfg = read_config(self.config)
        form_of(cfg).check(cfg)
        if is_distilling(cfg):
            raise ValueError(
                f"--config-file is '{self.config}', which distils; it must be the config of the "
                "student without a teacher, for the baseline."
            )
        for option in options_for(self.config, self.opts):
            key = option.split("=")[0].lstrip("+")
            if key.split(".")[:2] == ["model", "distiller"]:  # of a LazyConfig
                raise ValueError(
                    f"--opts has {key}; leave it out: --methods says what runs, each method with "
                    "its default settings."
                )
        distill(cfg, self.teacher, find_file(self.args.teacher_weights or ""))
        cfg = self._override(cfg, self.opts)
        form_of(cfg).check_training(cfg)
        return cfg

    def _override(self, cfg: Config, opts: Sequence[str]) -> Config:
        return form_of(cfg).override(cfg, options_for(self.config, opts))

    def _datasets(self, cfg: Config) -> Tuple[List[str], List[str]]:
        """Flags and options that make a run train and test on the tuning split."""
        args, own, keys = self.args, [*self.args.register_coco], run_settings.keys_of(self.form)
        sets = {name: run_settings.value_of(cfg, name) for name in ("train_sets", "test_sets")}
        for name, value in sets.items():
            if value is None:
                raise ValueError(
                    f"{keys[name]} is missing; it must be there, to be set to what is held out."
                )
        train, test = args.train or sets["train_sets"], args.test
        if not test:
            folder = os.path.join(self.work, "split")
            key = "--train" if args.train else keys["train_sets"]
            parts = hold_out(own, train, args.folds, folder, key)
            own = [*parts["train"], *parts["test"]]
            train, test = ([name for name, *_ in parts[part]] for part in ("train", "test"))
        else:
            check_registered("--train" if args.train else keys["train_sets"], train)
            check_registered("--test", test)
        both = sorted(set(train) & set(test))
        if both:
            raise ValueError(f"--test has {both}, which is trained on; it must be held out.")
        opts = ["DATASETS.TRAIN", str(train), "DATASETS.TEST", str(test)]
        return setup_flags(args, own), [*opts, *_for_evaluator(cfg, test)]

    def _same_search(self) -> None:
        """
        Note in the folder what is searched.

        Raises:
            ValueError: it holds another search, or another process is at it.
        """
        now = {
            "--config-file": self.config, "--teacher": self.teacher_flags(), "--seed": self.seed,
            "iterations": self.iterations, "--rungs": self.args.rungs,
            "--factor": self.args.factor, "datasets": [self.flags, self.datasets],
            "--opts": self.opts, "--metric": self.args.metric,
            "--levels": {name: list(space.levels) for name, space in self.spaces.items()},
        }  # fmt: skip
        os.makedirs(self.work, exist_ok=True)
        try:
            lock.acquire(self.work)
        except lock.FolderInUseError:
            raise ValueError(
                f"--work is '{self.work}', where another tune.py is at work: wait for it to end, "
                "or name another folder."
            ) from None
        path = os.path.join(self.work, "search.json")
        if os.path.exists(path):
            with open(path) as f:
                earlier = json.load(f)
            now["--levels"] = {**earlier["--levels"], **now["--levels"]}  # more methods may come
            changed = [key for key in now if json.loads(json.dumps(now[key])) != earlier.get(key)]
            if changed:
                raise ValueError(
                    f"'{self.work}' holds a search with another {', '.join(changed)}: only "
                    "--trials, --minutes and --methods may change. Choose another --work."
                )
        write_text(path, json.dumps(now))


def _for_evaluator(cfg: Config, test: Sequence[str]) -> List[str]:
    """A LazyConfig names its test set twice: for the loader, and for what scores."""
    if isinstance(cfg, CfgNode):
        return []
    key = "dataloader.evaluator.dataset_name"
    if run_settings.select(cfg, key) is None:
        raise ValueError(f"{key} is missing; it must be there, to be set to what is held out.")
    if len(test) > 1:
        raise ValueError(f"{key} is of one dataset, and to compare on are {', '.join(test)}.")
    return [key, repr(test[0])]


def tune(args: argparse.Namespace, command: str) -> int:
    """
    Search, train what it proposes, and report.

    Args:
        args: of the command line.
        command: how to make it again, for the report.

    Returns:
        The exit code: 1 if a trial failed.
    """
    tuning = Tuning(args)
    output = args.output or args.work
    make_output(output)  # not after the first run
    jobs = args.jobs or default_jobs()
    threads = same_threads(args.work, args.threads, default_threads(jobs, jobs))
    failed: List[TrialRun] = []

    def note(run: TrialRun) -> None:
        failed.extend([run] if run.error else [])
        tuning.clock.save()
        write_tuning(tuning, output, command)

    try:
        work_off(tuning.search, tuning.run_of, tuning.baseline, jobs, threads, args.metric, note)
    finally:
        tuning.clock.save()
    write_tuning(tuning, output, command)
    print_results(tuning)
    print(f"{output}/README.md holds all of it.")
    for run in failed:
        print(f"'{run.name}' {run.error}", file=sys.stderr)
    return 1 if failed else 0


def work_off(
    search: Search,
    run_of: Callable[[Attempt], TrialRun],
    baseline: TrialRun,
    jobs: int,
    threads: int,
    metric: str = "",
    on_end: Callable[[TrialRun], None] = lambda run: None,
) -> None:
    """
    Run the baseline, what was interrupted, and what the search proposes, ``jobs`` at a time. A
    trial that fails stays undecided, to be tried again by the next call, unless it diverged.

    Raises:
        RunError: the baseline failed; the others are stopped.
        ValueError: there is no such metric; likewise.
    """
    stop_on_sigterm()
    waiting = [run_of(attempt) for attempt in search.attempts() if attempt.running]
    waiting = [run for run in [baseline, *waiting] if not _done_already(search, run, metric)]
    running: List[TrialRun] = []
    gpus = visible_gpus()
    try:
        while True:
            while len(running) < jobs:
                run = waiting.pop(0) if waiting else _proposed(search, run_of)
                if run is None:
                    break
                run.start(threads, True, least_used(gpus, running))
                running.append(run)
            if not running:
                return
            time.sleep(POLL)
            for run in list(running):
                ended = run.ended()  # first: what is read after it is complete
                _follow(search, run, metric)
                if ended:
                    running.remove(run)
                    _close(search, run, metric)
                    on_end(run)
    finally:
        stop(running)


def _proposed(search: Search, run_of: Callable[[Attempt], TrialRun]) -> Optional[TrialRun]:
    attempt = search.next()
    return run_of(attempt) if attempt else None


def _done_already(search: Search, run: TrialRun, metric: str) -> bool:
    """Note a run that came to its end when nobody was looking; whether it did."""
    if not run.finished():
        return False
    _follow(search, run, metric)
    if run.attempt:
        _close(search, run, metric)
    return True


def _follow(search: Search, run: TrialRun, metric: str) -> None:
    """Report the rungs a run has reached, and stop it if it is given up."""
    if run.attempt is None or run.attempt.pruned:
        return
    for step, value in run.values(metric):
        if step not in search.rungs.steps() or not search.report(run.attempt, step, value):
            continue
        if run.process is not None and run.process.poll() is None:
            run.process.terminate()
        return


def _close(search: Search, run: TrialRun, metric: str) -> None:
    """Note the end of a run."""
    if run.attempt and run.attempt.pruned:
        run.error = ""  # it was told to stop
        for path in glob.glob(os.path.join(glob.escape(run.folder), "*.pth")):
            os.remove(path)  # it will not go on
        _say(run, "given up", run.values(metric))
        return
    if not run.error and not run.finished():
        run.error = f"ended without an evaluation; see {run.folder}/stdout.txt"
    if run.error and not run.attempt:
        raise RunError(f"the baseline {run.error}")
    values = [] if run.error else run.values(metric)
    if run.attempt and not run.error:
        search.finish(run.attempt, values[-1][1])
    if run.attempt and DIVERGED in run.error:  # as it would again
        run.note_failure()
        search.give_up(run.attempt)
    _say(run, "failed" if run.error else "done", values)


def _say(run: TrialRun, state: str, values: Sequence[Tuple[int, float]]) -> None:
    last = f": {values[-1][1]:.1f} at iteration {values[-1][0]}" if values else ""
    print(f"[{time.strftime('%H:%M:%S')}] {run.name}: {state}{last}", flush=True)
