"""
Which settings are tried next, and which are given up: optuna's search and successive halving
(K. Jamieson and A. Talwalkar, AISTATS 2016; as L. Li et al., MLSys 2020, do it without waiting), a
study for each method, and as many trials for each. Knows numbers only: tune.py runs them.
"""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from ...config.naming import called, written_as
from ...distillers import GradientBalance
from ...distillers.schedule import DECAYS
from ...distillers.words import called as called_of

# Sum of the terms' gradients, in the detector's; and a term's proportion to the first one's.
SHARE = PROPORTION = (0.1, 10.0)
# of all iterations
WARMUP = (0.0, 0.2)
UNTIL = (0.25, 1.0)
# of a method, before what they gave decides about the next one
RANDOM_TRIALS = 5

Settings = Dict[str, Any]


@dataclass(frozen=True)
class Space:
    """
    What is searched of a method.

    Attributes:
        terms: their names, without ``loss_distill_``. The first one's proportion is 1.
        levels: choices of levels, as "p2,p3"; the first is all of them.
        first: ``SHARE``, ``DECAY``, ``WARMUP`` and ``UNTIL`` (fractions of the iterations) of the
            first trial, and each term's proportion by its name.
        share: limits of ``SHARE``.
    """

    terms: Sequence[str]
    levels: Sequence[str]
    first: Settings
    share: Tuple[float, float] = SHARE

    def suggest(self, trial: Trial) -> Settings:
        """The settings of a trial, by the names of ``first``, and ``LEVELS``."""
        settings = {
            "SHARE": trial.suggest_float("SHARE", *self.share, log=True),
            "DECAY": trial.suggest_categorical("DECAY", DECAYS),
            "WARMUP": trial.suggest_float("WARMUP", *WARMUP),
            "UNTIL": trial.suggest_float("UNTIL", *UNTIL),
        }
        for term in self.terms[1:]:
            settings[term] = trial.suggest_float(term, *PROPORTION, log=True)
        if len(self.levels) > 1:
            settings["LEVELS"] = trial.suggest_categorical("LEVELS", tuple(self.levels))
        return settings

    def start(self) -> Settings:
        """The first trial: ``first``, within what is searched."""
        given = {**dict.fromkeys(self.terms, 1.0), **self.first}
        settings = {"SHARE": _within(given["SHARE"], self.share), "DECAY": given["DECAY"]}
        settings["WARMUP"] = _within(given["WARMUP"], WARMUP)
        settings["UNTIL"] = _within(given["UNTIL"], UNTIL)
        settings.update({t: _within(given[t], PROPORTION) for t in self.terms[1:]})
        return {**settings, **({"LEVELS": self.levels[0]} if len(self.levels) > 1 else {})}


def _within(value: float, limits: Tuple[float, float]) -> float:
    return min(max(float(value), limits[0]), limits[1])


def options(
    method: str, settings: Settings, space: Space, iterations: int, form: str
) -> Dict[str, Any]:
    """
    The keys of some settings in a form of config, ``YAML`` or ``LAZY``; the method's is one for
    both. Three digits: more say nothing, and are hard to read.
    """
    values = {
        "enabled": True,
        "share": _three_digits(settings["SHARE"]),
        "decay": settings["DECAY"],
        "warmup": int(settings["WARMUP"] * iterations),
        # older searches had a teacher to the end
        "until": _three_digits(settings.get("UNTIL", 1.0)),
    }
    parts = [[term, _three_digits(settings[term])] for term in space.terms if term in settings]
    # a method of one term has none, and may not keep those of another in the config
    values["shares"] = str([[space.terms[0], 1.0], *parts]) if parts else "[]"
    levels = settings.get("LEVELS", space.levels[0])
    with written_as(form):
        keys = {called_of(GradientBalance, name): value for name, value in values.items()}
        if levels != space.levels[0]:
            keys[called("MODEL.DISTILLER.LEVELS")] = str(levels.split(","))
    return {"MODEL.DISTILLER.NAME": method, **keys}


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Rungs:
    """
    Iterations at which trials are compared: ``period`` times the powers of ``factor``, up to the
    whole length, and of those at a rung one in ``factor`` goes on.

    Raises:
        ValueError: (of :meth:`of`) more rungs than the iterations can be divided into.
    """

    period: int
    factor: int
    iterations: int

    @classmethod
    def of(cls, iterations: int, count: int, factor: int) -> "Rungs":
        for name, value, least in (("--rungs", count, 1), ("--factor", factor, 2)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or above.")
        period = iterations // factor ** (count - 1)
        if period < 1:
            raise ValueError(
                f"--rungs is {count} and --factor {factor}, and a run has {iterations} iterations: "
                f"the first rung would be before the first one. Take fewer rungs."
            )
        return cls(period, factor, iterations)

    def steps(self) -> List[int]:
        """All but the last, which is the end of a run."""
        found, step = [], self.period
        while step * self.factor <= self.iterations:
            found.append(step)
            step *= self.factor
        return found


@dataclass
class Attempt:
    """One trial of a method. ``settings`` are as :meth:`Space.suggest` returns them."""

    method: str
    number: int
    settings: Settings
    trial: Optional[Trial]
    state: TrialState

    @property
    def pruned(self) -> bool:
        return self.state == TrialState.PRUNED

    @property
    def running(self) -> bool:
        return self.state == TrialState.RUNNING


class Search:
    """
    Rounds of one trial of every method, so that all have as many. What was tried is kept in a
    journal: a search made again from it goes on where it was, and proposes what it would have.
    """

    def __init__(
        self,
        journal: str,
        spaces: Mapping[str, Space],
        rungs: Rungs,
        *,
        seed: int = 0,
        trials: Optional[int] = None,
        minutes: Optional[float] = None,
        spent: Callable[[], float] = lambda: 0.0,
    ):
        """
        Args:
            journal: the file.
            spaces: by method.
            trials: of each method.
            minutes: of all of it. No round starts that is not likely to end by then, but the first.
            spent: minutes used up to now.
        """
        self.spaces, self.rungs, self.seed = dict(spaces), rungs, seed
        self.trials, self.minutes, self.spent = trials, minutes, spent
        self.storage = JournalStorage(JournalFileBackend(journal))
        pruner = SuccessiveHalvingPruner(min_resource=rungs.period, reduction_factor=rungs.factor)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.studies = {
            method: optuna.create_study(
                storage=self.storage, study_name=method, direction="maximize", pruner=pruner,
                load_if_exists=True,
            )
            for method in spaces
        }  # fmt: skip

    def next(self) -> Optional[Attempt]:
        """What to try next: the first method of those with the fewest trials. None: enough."""
        tried = {method: len(self._trials(method)) for method in self.studies}
        method = min(tried, key=tried.get)
        begins = len(set(tried.values())) == 1
        if begins and not self._affords(tried[method]):
            return None
        return self._ask(method, tried[method])

    def attempts(self) -> List[Attempt]:
        """All there are, by method and in their order."""
        return [self._attempt(m, t.number) for m in self.studies for t in self._trials(m)]

    def report(self, attempt: Attempt, step: int, value: float) -> bool:
        """
        Note what a trial has at a rung. What is noted already stays.

        Returns:
            Whether it is given up; it is noted as such.
        """
        if step not in self._noted(attempt):
            attempt.trial.report(value, step)
            if attempt.trial.should_prune():
                self.give_up(attempt)
        return attempt.pruned

    def give_up(self, attempt: Attempt) -> None:
        """Note that a trial will not go on: it is worse than those that came further."""
        self.studies[attempt.method].tell(attempt.number, state=TrialState.PRUNED)
        attempt.state = TrialState.PRUNED

    def finish(self, attempt: Attempt, value: float) -> None:
        """Note what a trial has at its end."""
        self.studies[attempt.method].tell(attempt.number, value)
        attempt.state = TrialState.COMPLETE

    def best(self, method: str) -> Optional[Attempt]:
        """The best attempt of those that came to their end; None if none did."""
        done = [t for t in self._trials(method) if t.state == TrialState.COMPLETE]
        if not done:
            return None
        return self._attempt(method, max(done, key=lambda trial: trial.value).number)

    def _trials(self, method: str) -> List[optuna.trial.FrozenTrial]:
        trials = self.studies[method].get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.WAITING]

    def _noted(self, attempt: Attempt) -> Dict[int, float]:
        trials = self.studies[attempt.method].get_trials(deepcopy=False)
        return trials[attempt.number].intermediate_values

    def _affords(self, rounds: int) -> bool:
        if self.trials is not None and rounds >= self.trials:
            return False
        if self.minutes is None or rounds == 0:
            return True
        return self.spent() * (rounds + 1) / rounds <= self.minutes

    def _ask(self, method: str, number: int) -> Attempt:
        study = self.studies[method]
        # of its own for each trial: after an interruption the same numbers would come again
        seed = 100_000 * self.seed + number
        study.sampler = TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(self.spaces[method].start())
        return self._attempt(method, study.ask().number)

    def _attempt(self, method: str, number: int) -> Attempt:
        study = self.studies[method]
        # optuna has no other way back to a trial at work
        identity = self.storage.get_trial_id_from_study_id_trial_number(
            self.storage.get_study_id_from_name(method), number
        )
        frozen = self.storage.get_trial(identity)
        if frozen.state != TrialState.RUNNING:
            return Attempt(method, number, dict(frozen.params), None, frozen.state)
        trial = Trial(study, identity)
        # where a proposal was interrupted, the rest of it is proposed now
        settings = self.spaces[method].suggest(trial)
        return Attempt(method, number, settings, trial, frozen.state)
