"""A search at work: what to run next, what came of it, and when it is over. Knows no Ray.

Whoever runs trials calls `next`, `report` and `end`; what a search must not lose is in its folder before they return.
Methods may be called from several threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from cluster.config import Layer, load_config, to_dict
from cluster.errors import XdistError
from cluster.runs import RunFolder
from tune_spaces import ledger
from tune_spaces.config import SearchConfig
from tune_spaces.hparams import trial_events
from tune_spaces.leaderboard import Leaderboard, Repeat, TrialRow, rank
from tune_spaces.report import search_report
from tune_spaces.space import Located, Space, values_layer
from tune_spaces.study import Asked, Direction, Study
from xdist_train.config import Config
from xdist_train.training.record import RunRecord

__all__ = ["Plan", "Search", "Task"]

_HOUR_S = 3600.0
_PAGE_S = 60.0
_WAIT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search is told, checked."""

    name: str
    recipe: str
    """As the user named it."""
    space: str
    """As the user named it."""
    config: Config
    """Of the recipe, all paths absolute; trials lay their values over it."""
    search: SearchConfig
    space_keys: Space
    """What trials vary."""
    located: Located
    """Where the recipe's own values lie in the space."""
    direction: Direction
    concurrency: int
    """Trials at a time."""
    use_gpu: bool

    @property
    def metric(self) -> str:
        """The figure on val that trials are judged by."""
        return self.config.train.metric

    def is_own(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial's values are the recipe's own."""
        return not self.located.outside and values == self.located.values

    def trial_config(self, name: str, values: Mapping[str, Any], *, seed: int | None = None) -> Config:
        """A trial's configuration: not evaluated on test, resumable, and patient where others use the cluster too."""
        layers = [Layer(f"recipe {self.recipe}", to_dict(self.config)), values_layer(values, f"trial {name}")]
        config = load_config(Config, layers)
        train = config.train if seed is None else replace(config.train, seed=seed)
        run = replace(config.run, name=name, resume="auto")
        scale = config.scale if config.scale.wait_s else replace(config.scale, wait_s=_WAIT_S)
        evaluate, cam = replace(config.evaluate, test=False), replace(config.cam, after=False)
        return replace(config, run=run, train=train, scale=scale, evaluate=evaluate, cam=cam)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trial, or a repetition of one, that is to be run."""

    name: str
    """Of its run folder."""
    place: str
    """Key of the folder of its run folder: trials or repeats."""
    number: int
    """Of the trial."""
    values: Mapping[str, Any]
    """Of the trial."""
    config: Config
    started: float = 0.0
    """By the clock that never goes back."""


class Search:
    """One start of a search.

    Args:
        plan: what it is told.
        study: what was asked and told, also by earlier starts.
        record: of `search.json`; its folder is this start's own.
        journal: the study's local file.
        changed: called when a trial has started or ended, with a line that says so.
        clock: seconds.
    """

    def __init__(
        self,
        plan: Plan,
        study: Study,
        record: RunRecord,
        journal: Path,
        *,
        changed: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._study, self._record, self._journal = plan, study, record, journal
        self._changed, self._clock = changed, clock
        self._lock = threading.RLock()
        self._began, self._seconds_before = clock(), float(record.values["seconds"])
        self._rows: dict[int, TrialRow] = {}
        self._live: dict[str, Task] = {}
        self._left: list[Task] = []
        self._repeats: list[Task] | None = None
        self._verdicts: dict[str, str] = {}
        self._drawn = self._began
        self.stopping = False
        """Whether no more trials are to start."""
        self._read_back()

    @property
    def plan(self) -> Plan:
        """What it is told."""
        return self._plan

    @property
    def folder(self) -> RunFolder:
        """Where it is kept."""
        return self._record.folder

    @property
    def live(self) -> list[Task]:
        """Trials at work."""
        with self._lock:
            return list(self._live.values())

    @property
    def seconds(self) -> float:
        """Of search, over all starts."""
        return self._seconds_before + self._clock() - self._began

    def next(self) -> Task | None:
        """What to run now; None if there is no room, or nothing more: then nothing is `live` either.

        What it gives counts as at work until `end`.
        """
        with self._lock:
            if self.stopping or len(self._live) >= self._plan.concurrency:
                return None
            task = self._next_trial()
            if task is None and not self._live:
                task = self._next_repeat()
            if task is None:
                return None
            task = replace(task, started=self._clock())
            self._live[task.name] = task
            self._keep_journal()
            self._changed(f"{task.place.removesuffix('s')} {task.name} starts")
            return task

    def report(self, name: str, epochs: int, figure: float | None) -> bool:
        """A trial's metric after so many epochs; whether it is to stop."""
        with self._lock:
            task = self._live[name]
            if task.place == ledger.TRIALS:
                self._judge(task, epochs, figure)
            return name in self._verdicts

    def is_pruned(self, name: str) -> bool:
        """Whether it was decided that a trial stops early."""
        return name in self._verdicts

    def _judge(self, task: Task, epochs: int, figure: float | None) -> None:
        """Each epoch of a trial is judged once, also over several starts, and none after a verdict.

        The recipe's own trial runs to its end, whatever the scheduler says: the others are compared with it.
        """
        if task.name in self._verdicts:
            return
        new = figure is not None and math.isfinite(figure) and self._study.report(task.number, epochs, figure)
        if epochs < task.config.train.epochs:
            verdict = self._spent()
            if not verdict and new and not self._plan.is_own(task.values) and self._study.should_stop(task.number):
                verdict = f"{self._plan.search.scheduler} after epoch {epochs}"
            if verdict:
                self._verdicts[task.name] = verdict
                self._study.note_verdict(task.number, verdict)
        self._keep_journal()

    def end(self, name: str, reason: str = "") -> None:
        """A trial is at work no more; what came of it is in its run folder.

        Args:
            reason: what else is known of why it failed.
        """
        with self._lock:
            task = self._live.pop(name)
            if task.place == ledger.TRIALS:
                self._settle(task.number, task.values, reason or self._verdicts.get(name, ""))
                self._publish_events(task.number)
            else:
                self._note_repeats()
            self._keep_journal()
            self.publish()
            row = self._rows.get(task.number)
            self._changed(_said(task, row, self._plan.metric) if row else f"{name} ended")

    def board(self, status: str = "running") -> Leaderboard:
        """The leaderboard as it is now."""
        with self._lock:
            ranked = rank([*self._rows.values(), *self._unfinished()], self._plan.direction)
            best = next((row.name for row in ranked if row.status == "finished" and row.figure is not None), None)
            own = next((row.name for row in ranked if self._plan.is_own(row.values)), None)
            return Leaderboard(
                name=self._plan.name,
                recipe=self._plan.recipe,
                space=self._plan.space,
                metric=self._plan.metric,
                direction=self._plan.direction,
                settings=to_dict(self._plan.search),
                status=status,
                rows=ranked,
                best=best,
                own=own,
                outside=dict(self._plan.located.outside),
                tested=tuple(self._record.values["tested"]),
                seconds=self.seconds,
                workers=self._plan.config.scale.most,
                use_gpu=self._plan.use_gpu,
            )

    def publish(self, board: Leaderboard | None = None) -> None:
        """Leaderboard, best configuration and record, as they are now; the page too, but not too often.

        Args:
            board: the last word, with its page.
        """
        with self._lock:
            last, board = board is not None, board or self.board()
            keys = ledger.publish_leaderboard(self.folder, board)
            if board.best:
                self.folder.publish(ledger.BEST, ledger.best_recipe(self._run(board.best), board, self._plan.config))
                keys.append(ledger.BEST)
            if last or self._clock() - self._drawn > _PAGE_S:
                self.folder.publish(ledger.REPORT, search_report(board, self._plan.space_keys).encode())
                self._drawn = self._clock()
                keys.append(ledger.REPORT)
            self.write(best=board.best, complete=sorted({*self._record.values["complete"], *keys}))

    def _publish_events(self, number: int) -> None:
        row = self._rows.get(number)
        if row:
            self.folder.publish(ledger.events_key(row.name), trial_events(row, self._plan.metric))

    def write(self, **changes: Any) -> None:
        """Change values of `search.json` and publish it."""
        with self._lock:
            self._record.write(**self._counted(), **changes)

    def beat(self) -> None:
        """`search.json` with a sign of life, now and then."""
        with self._lock:
            self._record.values["seconds"] = self.seconds
            self._record.beat(trials=self._counted()["trials"])

    def note_test(self, name: str) -> None:
        """A trial's model was evaluated on test."""
        self.write(tested=[*self._record.values["tested"], name])

    def finish(self, status: str, **changes: Any) -> None:
        """The last word of this start."""
        with self._lock:
            self._record.end(status, **self._counted(), **changes)

    def _counted(self) -> dict[str, Any]:
        rows = sorted([*self._rows.values(), *self._unfinished()], key=lambda row: row.number)
        trials = [{"number": row.number, "name": row.name, "status": row.status} for row in rows]
        return {"trials": trials, "seconds": self.seconds}

    def _unfinished(self) -> list[TrialRow]:
        """Rows of trials that were asked for and have not ended."""
        named = {ledger.trial_name(asked.number, asked.values): asked for asked in self._study.running()}
        return [
            TrialRow(
                number=asked.number,
                name=name,
                status="running" if name in self._live else "stopped",
                values=asked.values,
            )
            for name, asked in named.items()
        ]

    def _read_back(self) -> None:
        """What earlier starts left: rows of ended trials, reports of the others, which go on first."""
        for told in self._study.told():
            run = self._run(ledger.trial_name(told.number, told.values))
            row = ledger.read_trial(run, self._plan.metric, number=told.number, values=told.values, reason=told.reason)
            if row.status != told.status:  # finished without a figure, or its folder is gone
                reason = told.reason or "its run folder is not there any more"
                row = replace(row, status=told.status, reason=reason, figure=told.figure, curve=told.figures)
            self._rows[told.number] = row
        for asked in self._study.running():
            name = ledger.trial_name(asked.number, asked.values)
            row = ledger.read_trial(
                self._run(name), self._plan.metric, number=asked.number, values=asked.values, ended=False
            )
            if row.status in ("finished", "pruned", "failed"):  # ended, and its driver died before it could tell
                self._settle(asked.number, asked.values, asked.verdict)
                continue
            task = self._task(asked)
            if task is None:
                continue
            if asked.verdict:
                self._verdicts[name] = asked.verdict
            for epochs, figure in sorted(row.curve.items()):
                self._judge(task, epochs, figure)
            self._left.append(task)
        self._note_repeats()

    def _settle(self, number: int, values: Mapping[str, Any], reason: str) -> None:
        """A trial's end, as its run folder has it, into the study and the leaderboard."""
        run = self._run(ledger.trial_name(number, values))
        row = ledger.read_trial(run, self._plan.metric, number=number, values=values, reason=reason)
        if row.status == "stopped":
            return  # it goes on in the next start
        if row.status == "finished" and row.figure is None:
            row = replace(row, status="failed", reason=f"it gave no figure of {self._plan.metric}")
        if row.status == "finished":
            for epochs, figure in row.curve.items():
                self._study.report(number, epochs, figure)
            self._study.complete(number, cast(float, row.figure))
        elif row.status == "pruned":
            self._study.prune(number, row.reason)
        else:
            self._study.fail(number, row.reason)
        self._rows[number] = row

    def _next_trial(self) -> Task | None:
        if self._spent():
            return None
        if self._left:
            return self._left.pop(0)
        while (asked := self._ask()) is not None:
            task = self._task(asked)
            if task is not None:
                return task
        return None

    def _task(self, asked: Asked) -> Task | None:
        """What to run for a trial; None if its values, possible one by one, are not together: then it has failed."""
        name = ledger.trial_name(asked.number, asked.values)
        try:
            config = self._plan.trial_config(name, asked.values)
        except XdistError as error:
            self._study.fail(asked.number, str(error))
            self._rows[asked.number] = TrialRow(
                number=asked.number, name=name, status="failed", reason=str(error), values=asked.values
            )
            return None
        return Task(name=name, place=ledger.TRIALS, number=asked.number, values=asked.values, config=config)

    def _ask(self) -> Asked | None:
        limit = self._plan.search.trials
        started = len(self._rows) + len(self._study.running())
        return None if limit and started >= limit else self._study.ask()

    def _next_repeat(self) -> Task | None:
        if self._repeats is None:
            self._repeats = self._plan_repeats()
        return self._repeats.pop(0) if self._repeats and not self._spent() else None

    def _plan_repeats(self) -> list[Task]:
        """Of each of the best, the seeds after its own that have not finished."""
        tasks = []
        for row, seed, name in self._repeat_names():
            if any(repeat.name == name and repeat.figure is not None for repeat in row.repeats):
                continue
            config = self._plan.trial_config(name, row.values, seed=seed)
            tasks.append(Task(name=name, place=ledger.REPEATS, number=row.number, values=row.values, config=config))
        return tasks

    def _repeat_names(self) -> list[tuple[TrialRow, int, str]]:
        """(row, seed, name) of each repetition that this search is to have."""
        search = self._plan.search
        ended = [replace(row, repeats=()) for row in self._rows.values() if row.status == "finished"]
        best = [self._rows[row.number] for row in rank(ended, self._plan.direction)[: search.repeat_top]]
        own = [self._plan.trial_config(row.name, row.values).train.seed for row in best]
        return [
            (row, seed, f"{row.number:04d}-seed{seed}")
            for row, first in zip(best, own, strict=True)
            for seed in range(first + 1, first + search.repeat_seeds)
        ]

    def _note_repeats(self) -> None:
        """Repetitions as their run folders have them, into the rows of their trials."""
        found: dict[int, list[Repeat]] = {}
        for row, seed, name in self._repeat_names():
            run = self.folder.store.child(ledger.REPEATS).child(name)
            repeat = ledger.read_repeat(run, seed)
            if repeat.worker_seconds and name not in self._live:
                found.setdefault(row.number, []).append(repeat)
        for number, repeats in found.items():
            self._rows[number] = replace(self._rows[number], repeats=tuple(repeats))

    def _spent(self) -> str:
        """Which limit of the search is reached; empty while none is."""
        search = self._plan.search
        if search.hours and self.seconds >= search.hours * _HOUR_S:
            return f"search.hours={search.hours:g} is used up"
        if search.gpu_hours and self._gpu_seconds() >= search.gpu_hours * _HOUR_S:
            return f"search.gpu_hours={search.gpu_hours:g} is used up"
        return ""

    def _gpu_seconds(self) -> float:
        """Of all trials so far; those at work count from when they were started."""
        now, rows = self._clock(), self._rows.values()
        ended = sum(row.worker_seconds + sum(repeat.worker_seconds for repeat in row.repeats) for row in rows)
        return ended + sum((now - task.started) * task.config.scale.most for task in self._live.values())

    def _run(self, name: str) -> Any:
        return self.folder.store.child(ledger.TRIALS).child(name)

    def _keep_journal(self) -> None:
        self.folder.publish(ledger.JOURNAL, self._journal.read_bytes())


def _said(task: Task, row: TrialRow, metric: str) -> str:
    """How a trial ended, on one line."""
    if task.place == ledger.REPEATS:
        repeat = next((repeat for repeat in row.repeats if repeat.name == task.name), None)
        came_to = f"{metric} {repeat.figure:.4f}" if repeat and repeat.figure is not None else "failed"
        return f"repeat {task.name}: {came_to}"
    if row.status == "failed":
        return f"trial {row.name} failed: {row.reason}"
    how = f"stopped early, {row.reason}:" if row.status == "pruned" else row.status
    figure = f" {metric} {row.figure:.4f} (epoch {row.selected_epoch})" if row.figure is not None else ""
    return f"trial {row.name} {how}{figure}"
