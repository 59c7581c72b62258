"""The study of a search: what was tried, what came of it, and what to try next. Nothing else samples.

Ask and tell, no Ray: `ask` gives a numbered trial's values, `report` keeps its figure after an epoch,
`should_stop` says by the scheduler's rule whether it is worth another, and `complete`, `prune` or `fail` ends it.
With a journal (Optuna's, JSON lines, nothing pickled) a study that was killed opens again with all that it learned;
trials that were running are in `running`, under their old numbers. A trial is drawn whole before it is written, as one
line.

Every draw is arithmetic: its generator is seeded by (seed, trial number, parameter). So what is asked next depends
on the seed and on what was told so far, not on how often the study was opened.

No configuration is tried twice. TPE asks again and again for the best that it knows where a space is small, which
ties with itself at every rung of ASHA: without this rule both together come to a stand on the recorded table.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cluster.errors import InputError
from tune_spaces.domains import Parameter
from tune_spaces.space import Space

__all__ = ["SAMPLERS", "SCHEDULERS", "Asked", "Direction", "Study", "Told", "open_study"]

Direction = Literal["minimize", "maximize"]

_NAME = "search"
# Attributes of the study and of its trials.
_SETTINGS = "settings"
_REASON = "reason"
# What a generator's draws are for, where it is no parameter's.
_JOINT = ""
_GRID_ORDER = "grid order"
# Draws of one trial, until one is new: at first by the sampler, then by chance.
_MOST_DRAWS, _SAMPLER_DRAWS = 100, 4
# Trials that must have finished before a median of them stops others.
_LEAST_MEDIAN = 3


@dataclass(frozen=True)
class Asked:
    """A trial to run."""

    number: int
    """0 and up, the same after a restart."""
    values: dict[str, Any]
    """By dotted key, what it lays over the recipe."""
    verdict: str = ""
    """Why it is to be stopped early, if that was decided."""


@dataclass(frozen=True)
class Told:
    """A trial that ended."""

    number: int
    values: dict[str, Any]
    status: Literal["finished", "pruned", "failed"]
    figure: float | None
    """The metric told; for a pruned trial that of its last epoch; None if it failed."""
    figures: dict[int, float]
    """The metric by epochs done, as reported."""
    reason: str
    """Why it failed or was pruned."""


class Study:
    """One search's trials; `open_study` makes one. To be used by one process at a time."""

    def __init__(
        self, space: Space, study: optuna.Study, storage: BaseStorage, plans: _Plans, num_trials: int | None
    ) -> None:
        self._space = space
        self._study = study
        self._storage = storage
        self._plans = plans
        self._id = storage.get_study_id_from_name(study.study_name)
        self.num_trials = num_trials
        """Trials that a grid has; None for other samplers."""

    def ask(self) -> Asked | None:
        """The next trial to run, other than all before it; None where there is none more."""
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        tried = {frozenset(trial.params.items()) for trial in trials}
        for sampler, fixed in self._plans(len(trials)):
            trial = self._draw(trials, sampler, fixed)
            if frozenset(trial.params.items()) not in tried:
                self._study.add_trial(trial)
                return Asked(len(trials), self._space.values_of(trial.params))
        return None

    def _draw(self, trials: Sequence[FrozenTrial], sampler: BaseSampler, fixed: Mapping[str, Parameter]) -> FrozenTrial:
        """A running trial, drawn whole in a copy of the study: nothing is written here."""
        copy = optuna.create_study(direction=self._study.direction, sampler=sampler)
        copy.add_trials(trials)
        if fixed:
            copy.enqueue_trial(dict(fixed))
        drawn = copy.ask()
        self._space.suggest(drawn)
        return create_trial(state=TrialState.RUNNING, params=drawn.params, distributions=drawn.distributions)

    def report(self, number: int, epochs: int, figure: float) -> bool:
        """The metric of a running trial after so many epochs; told again, it stays as it is. Whether it was new."""
        if epochs in self._trial(number).intermediate_values:
            return False
        self._storage.set_trial_intermediate_value(self._trial_id(number), epochs, figure)
        return True

    def should_stop(self, number: int) -> bool:
        """Whether the scheduler ends a running trial, by its reports and those of the others so far."""
        return optuna.Trial(self._study, self._trial_id(number)).should_prune()

    def note_verdict(self, number: int, reason: str) -> None:
        """It is decided that a running trial stops early, which takes it a while."""
        self._storage.set_trial_user_attr(self._trial_id(number), _REASON, reason)

    def complete(self, number: int, figure: float) -> None:
        """A trial came to its end with this figure; one that is not finite fails it."""
        if not math.isfinite(figure):
            self.fail(number, f"its metric is {figure}")
            return
        self._study.tell(number, figure)

    def prune(self, number: int, reason: str = "") -> None:
        """A trial was stopped early; the sampler learns from its reports."""
        self._storage.set_trial_user_attr(self._trial_id(number), _REASON, reason)
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """A trial failed; the sampler learns nothing from it."""
        self._storage.set_trial_user_attr(self._trial_id(number), _REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)

    def running(self) -> list[Asked]:
        """Trials that were asked for and not ended; after a restart, those to go on with."""
        return [self._asked(trial) for trial in self._trials(TrialState.RUNNING)]

    def told(self) -> list[Told]:
        """Trials that ended, by number."""
        return [self._told(trial) for trial in self._trials(*_STATUS)]

    def _asked(self, trial: FrozenTrial) -> Asked:
        return Asked(trial.number, self._space.values_of(trial.params), trial.user_attrs.get(_REASON, ""))

    def _told(self, trial: FrozenTrial) -> Told:
        figures = dict(trial.intermediate_values)
        values = self._space.values_of(trial.params)
        return Told(trial.number, values, _STATUS[trial.state], trial.value, figures, trial.user_attrs.get(_REASON, ""))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False, states=states)

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


_STATUS: dict[TrialState, Literal["finished", "pruned", "failed"]] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def open_study(
    space: Space,
    own: Mapping[str, Parameter],
    *,
    sampler: str = "tpe",
    scheduler: str = "none",
    direction: Direction = "maximize",
    seed: int = 0,
    num_points: int = 3,
    grace_epochs: int = 3,
    reduction_factor: int = 3,
    journal: Path | None = None,
    place: str = "",
) -> Study:
    """A new study, or the one that a journal holds.

    Args:
        space: what trials vary.
        own: the recipe's own parameters (`Space.locate(config).params`), which are the first trial. What they leave
            out the sampler picks; a grid starts with them only where they are whole.
        sampler: random, grid or tpe. TPE is Optuna's (Bergstra et al. 2011; multivariate: Falkner et al. 2018), its
            conditional parameters in groups, running trials counted as bad ones (constant liar).
        scheduler: asha, median or none: what stops a trial early. ASHA (Li et al. 2018) asks after `grace_epochs`
            epochs, and each time that these have grown by `reduction_factor`, whether a trial is among the best
            1 / `reduction_factor` of those that came as far, and does not wait for the others; median asks after
            each epoch from `grace_epochs` on whether a trial's best is better than the median of finished ones.
        direction: whether a greater figure is better.
        seed: of every draw.
        num_points: of a range, in a grid.
        grace_epochs: epochs that every trial may run.
        reduction_factor: of ASHA.
        journal: file, made if there is none; None keeps the study in memory.
        place: where the journal's user finds it, for errors.

    Raises:
        InputError: unknown sampler or scheduler, too large a grid, an unreadable journal, or one of another search.
    """
    for kind, name, known in (("sampler", sampler, SAMPLERS), ("scheduler", scheduler, SCHEDULERS)):
        if name not in known:
            raise InputError(f"unknown {kind} {name!r}. They are: {', '.join(known)}.")
    settings = {
        "space": space.to_dict(),
        "digest": space.digest,
        "sampler": sampler,
        "scheduler": scheduler,
        "direction": direction,
        "seed": seed,
        "num_points": num_points if sampler == "grid" else None,
        "grace_epochs": grace_epochs if scheduler != "none" else None,
        "reduction_factor": reduction_factor if scheduler == "asha" else None,
    }
    grid = _plan_grid(space, own, num_points, seed) if sampler == "grid" else None
    # Its news of each trial, and that `group` may change in a later version (constraints.txt holds this one).
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message=".*``?group``?", category=optuna.exceptions.ExperimentalWarning)
    place = place or str(journal)
    storage = InMemoryStorage() if journal is None else _open_journal(journal, place)
    study = optuna.create_study(
        storage=storage,
        study_name=_NAME,
        direction=direction,
        load_if_exists=True,
        pruner=_PRUNERS[scheduler](grace_epochs, reduction_factor),
    )
    _settle(study, settings, place)
    if grid is not None:
        return Study(space, study, storage, partial(_plan_point, grid), len(grid))
    return Study(space, study, storage, partial(_plan_draws, seed, _SEEDED[sampler], own), None)


def _plan_grid(space: Space, own: Mapping[str, Parameter], num_points: int, seed: int) -> list[dict[str, Parameter]]:
    """The grid in an order that covers it wherever a budget ends: the recipe's own point, then a permutation."""
    points = space.grid(num_points)
    order = np.random.default_rng(np.random.SeedSequence([seed, _entropy(_GRID_ORDER)])).permutation(len(points))
    rest = [points[k] for k in order if points[k] != own]
    return [dict(own), *rest] if _is_whole(space, own) else rest


def _is_whole(space: Space, params: Mapping[str, Parameter]) -> bool:
    try:
        space.values_of(params)
    except KeyError:
        return False
    return True


def _settle(study: optuna.Study, settings: Mapping[str, Any], place: str) -> None:
    """Writes down what a study is, or refuses one that is something else."""
    kept = study.user_attrs.get(_SETTINGS)
    if kept is None:
        if study.get_trials(deepcopy=False):
            raise InputError(f"journal {place}: holds trials of another program. Give another place.")
        study.set_user_attr(_SETTINGS, json.loads(json.dumps(settings)))
        return
    if kept["digest"] != settings["digest"]:
        names = sorted(kept["space"].keys() | settings["space"].keys())
        differ = [name for name in names if kept["space"].get(name) != settings["space"].get(name)]
        raise InputError(
            f"journal {place}: belongs to a search over another space; these keys differ: {', '.join(differ)}. "
            "Go on with the same space, or start a search under another name."
        )
    # In their order: another scheduler is named before the options that come with it.
    for name in [name for name in {**settings, **kept} if kept.get(name) != settings.get(name)]:
        raise InputError(
            f"journal {place}: belongs to a search with {name} {kept.get(name)}, not {settings.get(name)}. "
            "Go on with the same settings, or start a search under another name."
        )


def _open_journal(path: Path, place: str) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_line(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_FileLock(path)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"journal {place}: not a readable journal ({' '.join(str(error).split())}). "
            "Take it away to start again, or bring back a copy."
        ) from None


def _cut_torn_line(path: Path) -> None:
    """Takes away what a killed writer left of a last line: Optuna would append the next record to it."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


class _FileLock(JournalFileOpenLock):
    """A lock that ends with its holder; Optuna's own stays behind a killed one for 30 s."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path.with_name(f"{path.name}.lock")
        self._file: int | None = None

    def acquire(self) -> bool:
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None


def _entropy(purpose: str) -> int:
    return zlib.crc32(purpose.encode())


_Plans = Callable[[int], Iterator[tuple[BaseSampler, Mapping[str, Parameter]]]]
"""For a trial's number, who draws it and what is fixed, one after the other until one draws what is new."""


def _plan_draws(
    seed: int, build: Callable[[int], BaseSampler], own: Mapping[str, Parameter], number: int
) -> Iterator[tuple[BaseSampler, Mapping[str, Parameter]]]:
    for draw in range(_MOST_DRAWS):
        key = [seed, number, *([draw] if draw else [])]
        yield _Numbered(key, build if draw < _SAMPLER_DRAWS else _build_random), {} if number else own


def _plan_point(
    points: Sequence[Mapping[str, Parameter]], number: int
) -> Iterator[tuple[BaseSampler, Mapping[str, Parameter]]]:
    """Trial number n is point n."""
    yield from ((RandomSampler(), point) for point in points[number : number + 1])


class _Numbered(BaseSampler):
    """A sampler without a state: each draw is that of a new one, seeded by trial number, draw and parameter."""

    def __init__(self, key: Sequence[int], build: Callable[[int], BaseSampler]) -> None:
        self._key, self._build = key, build

    def _sampler(self, purpose: str) -> BaseSampler:
        sequence = np.random.SeedSequence([*self._key, _entropy(purpose)])
        return self._build(int(sequence.generate_state(1)[0]))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(_JOINT).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sampler = self._sampler(_JOINT)
        # TPE keeps its groups from one call to the other.
        return sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(param_name).sample_independent(study, trial, param_name, param_distribution)


def _build_tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _build_random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


# Samplers whose draws are seeded; a grid has none.
_SEEDED: dict[str, Callable[[int], BaseSampler]] = {"random": _build_random, "tpe": _build_tpe}
SAMPLERS = ("grid", *_SEEDED)


class _Asha(BasePruner):
    """Asynchronous successive halving (Li et al. 2018, algorithm 2), without pauses: who is not promoted at once, ends.

    Optuna's own writes down that a rung was asked about, and lets a trial pass that is asked about again: one whose
    search was killed between the verdict and the trial's end. This one has no state but the reports.
    """

    def __init__(self, grace_epochs: int, reduction_factor: int) -> None:
        self._grace_epochs, self._reduction_factor = grace_epochs, reduction_factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        epochs = trial.last_step
        if epochs is None or not self._is_rung(epochs):
            return False
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        reports = (other.intermediate_values.get(epochs, math.nan) for other in study.get_trials(deepcopy=False))
        best_first = sorted((sign * figure for figure in reports if not math.isnan(figure)), reverse=True)
        figure = sign * trial.intermediate_values[epochs]
        # The best of fewer than one in `reduction_factor` is the best of all: the first trials wait for none.
        return not (best_first and figure >= best_first[max(len(best_first) // self._reduction_factor, 1) - 1])

    def _is_rung(self, epochs: int) -> bool:
        rung = self._grace_epochs
        while rung < epochs:
            rung *= self._reduction_factor
        return rung == epochs


def _build_median(grace_epochs: int, _: int) -> BasePruner:
    return MedianPruner(n_startup_trials=_LEAST_MEDIAN, n_warmup_steps=grace_epochs)


# They know nothing but reports, which are in the journal: a search that goes on stops what it would have stopped.
_PRUNERS: dict[str, Callable[[int, int], BasePruner]] = {
    "asha": _Asha,
    "median": _build_median,
    "none": lambda *_: NopPruner(),
}
SCHEDULERS = tuple(_PRUNERS)
