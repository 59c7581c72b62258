"""A search on the recorded table: the real study asks, the table answers, nothing is trained.

Trials take turns by a clock that counts epochs, as if each epoch of each configuration took as long. One at a time,
the calls of the study are those of a real search (`tune_spaces.search`): a report and a question behind each epoch
but the last, after which a trial is complete with the figure of its best epoch; the recipe's own is never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.bench.search_table import SearchTable, Trained
from tune_spaces.domains import Parameter
from tune_spaces.space import Space
from tune_spaces.study import Asked, Study, open_study

__all__ = ["Incumbent", "Replay", "ReplayedTrial", "replay"]


@dataclass(frozen=True, kw_only=True)
class ReplayedTrial:
    """A trial as the search saw it."""

    number: int
    values: dict[str, Any]
    status: Literal["running", "finished", "pruned", "failed"] = "running"
    """`running` where the budget ended it."""
    epochs: int = 0
    """Epochs done."""
    figures: tuple[float, ...] = ()
    """As reported, by epoch."""

    @property
    def figure(self) -> float | None:
        """The best so far; of a finished trial what it was told to have come to."""
        return max(self.figures, default=None)


@dataclass(frozen=True)
class Incumbent:
    """The trial that the search would choose if it ended here."""

    epochs: int
    """Epochs used by all trials together."""
    number: int
    regret: float
    """By how much the best row of the table is better than that trial's row."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A search that was replayed."""

    trials: tuple[ReplayedTrial, ...]
    """By number."""
    incumbents: tuple[Incumbent, ...]
    """After each epoch used."""
    most_regret: float
    """That of having nothing to choose."""

    @property
    def epochs(self) -> int:
        """Epochs used; one that a run failed in counts."""
        return self.incumbents[-1].epochs if self.incumbents else 0

    def regret_at(self, epochs: int) -> float:
        """The incumbent's regret once so many epochs were used."""
        return next((at.regret for at in reversed(self.incumbents) if at.epochs <= epochs), self.most_regret)


def replay(
    table: SearchTable,
    space: Space,
    own: dict[str, Parameter],
    *,
    sampler: str,
    scheduler: str,
    seed: int,
    epochs_budget: int | None = None,
    trials: int | None = None,
    concurrency: int = 1,
    grace_epochs: int = 3,
    reduction_factor: int = 3,
) -> Replay:
    """A whole search.

    Args:
        table: the answers.
        space: the table's own.
        own: the recipe's parameters (`space.locate(config).params`), the first trial.
        epochs_budget: epochs of all trials together, after which all stops; None has no limit.
        trials: configurations tried; None has no limit. One of the two must be given, but for a grid.
        concurrency: trials at a time.
    """
    assert epochs_budget is not None or trials is not None or sampler == "grid", "a search without an end"
    study = open_study(
        space,
        own,
        sampler=sampler,
        scheduler=scheduler,
        seed=seed,
        grace_epochs=grace_epochs,
        reduction_factor=reduction_factor,
    )
    own_values = space.values_of(own) if own else None
    return _Replaying(table, study, own_values, trials, concurrency).run(epochs_budget)


class _Replaying:
    """One call of `replay`."""

    def __init__(
        self,
        table: SearchTable,
        study: Study,
        own: dict[str, Any] | None,
        num_trials: int | None,
        concurrency: int,
    ) -> None:
        self._table, self._study, self._own = table, study, own
        self._num_trials, self._concurrency = num_trials, concurrency
        self._trials: dict[int, ReplayedTrial] = {}

    def run(self, epochs_budget: int | None) -> Replay:
        incumbents: list[Incumbent] = []
        for epochs, number in enumerate(self._turns(), 1):
            self._run_epoch(number)
            chosen = self._chosen()
            if chosen is not None:
                incumbents.append(Incumbent(epochs, chosen.number, self._table.regret(chosen.values)))
            if epochs == epochs_budget:
                break
        return Replay(
            trials=tuple(self._trials.values()),
            incumbents=tuple(incumbents),
            most_regret=self._table.best.figure or 0.0,
        )

    def _turns(self) -> Iterator[int]:
        """The trial that the next epoch is of: rounds of all that run, new ones at their end."""
        running: list[int] = []
        while True:
            while len(running) < self._concurrency and (asked := self._ask()) is not None:
                self._trials[asked.number] = ReplayedTrial(number=asked.number, values=asked.values)
                running.append(asked.number)
            if not running:
                return
            yield from running
            running = [number for number in running if self._trials[number].status == "running"]

    def _ask(self) -> Asked | None:
        return None if len(self._trials) == self._num_trials else self._study.ask()

    def _run_epoch(self, number: int) -> None:
        trial = self._trials[number]
        row = self._table.row(trial.values)
        self._trials[number] = self._failed(trial, row) if trial.epochs == len(row.curve) else self._went_on(trial, row)

    def _failed(self, trial: ReplayedTrial, row: Trained) -> ReplayedTrial:
        self._study.fail(trial.number, row.reason)
        return replace(trial, status="failed")

    def _went_on(self, trial: ReplayedTrial, row: Trained) -> ReplayedTrial:
        epochs = trial.epochs + 1
        trial = replace(trial, epochs=epochs, figures=row.curve[:epochs])
        self._study.report(trial.number, epochs, row.curve[epochs - 1])
        if epochs == self._table.epochs:
            assert trial.figure is not None
            self._study.complete(trial.number, trial.figure)
            return replace(trial, status="finished")
        if trial.values != self._own and self._study.should_stop(trial.number):
            self._study.prune(trial.number)
            return replace(trial, status="pruned")
        return trial

    def _chosen(self) -> ReplayedTrial | None:
        """The best finished trial; while there is none, the best by last report."""
        finished = [trial for trial in self._trials.values() if trial.status == "finished"]
        if finished:
            return max(finished, key=lambda trial: trial.figure or -math.inf)
        reported = [trial for trial in self._trials.values() if trial.figures and trial.status != "failed"]
        return max(reported, key=lambda trial: trial.figures[-1], default=None)
