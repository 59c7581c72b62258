"""A search at work: what to run next, what came of it, and when it is over. Knows no Ray.

Whoever runs trials calls `next`, `report` and `end`; what a search must not lose is in its folder before they return.
Methods may be called from several threads; none holds what is known while it waits for the storage.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from cluster.config import Layer, load_config, to_dict
from cluster.errors import StoreError, XdistError
from cluster.runs import REPORT, RunFolder
from tune_spaces import ledger
from tune_spaces.config import SearchConfig
from tune_spaces.hparams import trial_events
from tune_spaces.leaderboard import Leaderboard, Repeat, Status, TrialRow, rank
from tune_spaces.report import search_report
from tune_spaces.space import Located, Space, values_layer
from tune_spaces.study import Asked, Direction, Study
from tune_spaces.task import TRIED_AGAIN, Task, failure_kind, fate_of, launch_config
from xdist_train.config import Config
from xdist_train.training.messages import Ending
from xdist_train.training.record import RunRecord

__all__ = ["Plan", "Search"]

_HOUR_S = 3600.0
_PAGE_S = 60.0


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
        """A trial's configuration: one of many launches, not evaluated on test."""
        layers = [Layer(f"recipe {self.recipe}", to_dict(self.config)), values_layer(values, f"trial {name}")]
        config = load_config(Config, layers)
        train = config.train if seed is None else replace(config.train, seed=seed)
        use_gpu = self.use_gpu if config.scale == self.config.scale else None
        config = launch_config(config, name, use_gpu=use_gpu)
        return replace(config, train=train, evaluate=replace(config.evaluate, test=False))


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
        # Whoever writes into the folder holds this one, and takes it before the other or without it.
        self._writing = threading.RLock()
        self._began, self._seconds_before = clock(), float(record.values["seconds"])
        self._rows: dict[int, TrialRow] = {}
        self._open: dict[int, TrialRow] = {}
        self._repeats: dict[str, Repeat] = {}
        self._live: dict[str, Task] = {}
        self._left: list[Task] = []
        self._tries: Counter[str] = Counter()
        self._verdicts: dict[str, str] = {}
        self._exhausted = False
        self._limit = ""
        self._drawn = self._began
        self.stopping = False
        """Whether no more trials are to start, and those at work are to stop."""
        self.trouble = ""
        """Why it stops, where nobody asked for it."""
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
            task = self._next_trial() or self._next_repeat()
            if task is None:
                return None
            task = replace(task, started=self._clock())
            self._live[task.name] = task
            self._tries[task.name] += 1
        try:
            self._keep_journal()
        except XdistError:
            with self._lock:
                self._left.insert(0, self._live.pop(task.name))
            raise
        self._changed(f"{task.place.removesuffix('s')} {task.name} starts")
        return task

    def report(self, name: str, epochs: int, figure: float | None) -> Ending | None:
        """A trial's metric after so many epochs; whether it is to end, and as what: a limit's end is not for good."""
        with self._lock:
            task = self._live[name]
            heard, decided = True, name in self._verdicts
            if task.place == ledger.TRIALS:
                heard = not self._judge(task, epochs, figure)
            pruned = name in self._verdicts
            spent = epochs < task.config.train.epochs and self._spent()
        if pruned and not decided:
            self._keep_journal()
        elif not heard:
            self._note_report()
        return "pruned" if pruned else "stopped" if spent else None

    def is_pruned(self, name: str) -> bool:
        """Whether it was decided that a trial stops early."""
        return name in self._verdicts

    def _judge(self, task: Task, epochs: int, figure: float | None) -> bool:
        """Each epoch of a trial is judged once, also over several starts, and none after a verdict; whether it was now.

        The recipe's own trial runs to its end, whatever the scheduler says: the others are compared with it.
        """
        figure = figure if figure is not None and math.isfinite(figure) else math.nan
        self._open[task.number] = _went_on(self._open[task.number], epochs, figure, self._plan.direction)
        if task.name in self._verdicts or not self._study.report(task.number, epochs, figure):
            return False
        may_stop = epochs < task.config.train.epochs and not self._plan.is_own(task.values)
        if may_stop and self._study.should_stop(task.number):
            verdict = f"{self._plan.search.scheduler} after epoch {epochs}"
            self._verdicts[task.name] = verdict
            self._study.note_verdict(task.number, verdict)
        return True

    def end(self, name: str, reason: str = "") -> None:
        """A trial is at work no more; what came of it is in its run folder.

        Args:
            reason: what else is known of why it failed.
        """
        with self._lock:
            task = self._live[name]
        row = self._read(task, reason)
        with self._lock:
            del self._live[name]
            again = self._put_back(task, row)
            if not again:
                self._settle(task, row)
        if not again and task.place == ledger.TRIALS:
            self._publish_events(task.number)
        self._keep_journal()
        self.publish()
        self._changed(again or _said(task, row, self._plan.metric))

    def board(self, status: str = "running") -> Leaderboard:
        """The leaderboard as it is now."""
        with self._lock:
            plan, search = self._plan, self._plan.search
            rows = [replace(row, repeats=self._repeats_of(row.number)) for row in self._all_rows()]
            ranked = rank(rows, plan.direction, top=search.repeat_top, seeds=search.repeat_seeds)
            best = next((row.name for row in ranked if row.status == "finished" and row.figure is not None), None)
            own = next((row.name for row in ranked if plan.is_own(row.values)), None)
            return Leaderboard(
                name=plan.name,
                recipe=plan.recipe,
                space=plan.space,
                metric=plan.metric,
                direction=plan.direction,
                settings=to_dict(search),
                status=status,
                rows=ranked,
                best=best,
                own=own,
                outside=dict(plan.located.outside),
                tested=self._tested(),
                seconds=self.seconds,
                workers=plan.config.scale.most,
                use_gpu=plan.use_gpu,
            )

    @property
    def ended_by(self) -> str:
        """What ended it, in words; empty while nothing has."""
        with self._lock:
            spent, limit = self._spent(), self._plan.search.trials
            cut = len(self._left) + sum(1 for _ in self._repeats_to_do())
            if spent:
                return spent + (f"; {cut} begun or planned trainings were not done" if cut else "")
            if self._exhausted:
                return f"no configuration but the {len(self._rows)} that were tried was found in the space"
            reached = limit and len(self._rows) >= limit
            num_points = self._study.num_trials
            more = f" of a grid of {num_points}; search.trials=0 tries all" if num_points and num_points > limit else ""
            return f"search.trials={limit} is reached{more}" if reached else ""

    def publish(self, board: Leaderboard | None = None) -> None:
        """Leaderboard, best configuration and record, as they are now; the page too, but not too often.

        Args:
            board: the last word, with its page.
        """
        with self._writing:
            last, board = board is not None, board or self.board()
            keys = ledger.publish_leaderboard(self.folder, board)
            if board.best:
                self.folder.publish(ledger.BEST, ledger.best_recipe(self._run(board.best), board, self._plan.config))
                keys.append(ledger.BEST)
            if last or self._clock() - self._drawn > _PAGE_S:
                self.folder.publish(REPORT, search_report(board, self._plan.space_keys).encode())
                self._drawn = self._clock()
                keys.append(REPORT)
            self.write(best=board.best, complete=sorted({*self._record.values["complete"], *keys}))

    def _publish_events(self, number: int) -> None:
        with self._writing:
            row = self._rows[number]
            self.folder.publish(ledger.events_key(row.name), trial_events(row, self._plan.metric))

    def write(self, **changes: Any) -> None:
        """Change values of `search.json` and publish it."""
        with self._writing:
            self._record.write(**self._counted(), **changes)

    def beat(self) -> None:
        """`search.json` with a sign of life, now and then; not where somebody else is at the storage."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._record.values["seconds"] = self.seconds
            self._record.beat(trials=self._counted()["trials"])
        finally:
            self._writing.release()

    def note_test(self, name: str) -> None:
        """A trial's model was evaluated on test."""
        row = next(row for row in self._rows.values() if row.name == name)
        verdict = row.reason if row.status == "pruned" else ""
        row = self._read_row(row.number, row.values, row.reason, verdict=verdict)
        with self._lock:
            self._rows[row.number] = row
        self.write()

    def finish(self, status: str, **changes: Any) -> None:
        """The last word of this start."""
        with self._writing:
            self._record.end(status, **self._counted(), **changes)

    def _counted(self) -> dict[str, Any]:
        with self._lock:
            rows = sorted(self._all_rows(), key=lambda row: row.number)
            trials = [{"number": row.number, "name": row.name, "status": row.status} for row in rows]
            return {"trials": trials, "tested": list(self._tested()), "seconds": self.seconds}

    def _tested(self) -> tuple[str, ...]:
        return tuple(row.name for row in self._rows.values() if row.test_evaluations)

    def _all_rows(self) -> Iterator[TrialRow]:
        """Of trials that have ended, and of those that were asked for and have not, as they stand."""
        yield from self._rows.values()
        for row in self._open.values():
            task = self._live.get(row.name)
            spent = (self._clock() - task.started) * task.config.scale.most if task else 0.0
            status: Status = "running" if task else "stopped"
            yield replace(row, status=status, worker_seconds=row.worker_seconds + spent)

    # What earlier starts left ---------------------------------------------------------------------

    def _read_back(self) -> None:
        """Rows of ended trials, reports of the others, which go on first."""
        for told in self._study.told():
            verdict = told.reason if told.status == "pruned" else ""
            row = self._read_row(told.number, told.values, told.reason, verdict=verdict)
            if row.status != told.status:  # finished without a figure, or its folder is gone
                reason = told.reason or "its run folder is not there any more"
                figures = {epochs: figure for epochs, figure in told.figures.items() if math.isfinite(figure)}
                row = replace(row, status=told.status, reason=reason, figure=told.figure, curve=figures)
            self._rows[told.number] = row
        for asked in self._study.running():
            self._read_back_open(asked)
        for name in self.folder.store.list(ledger.REPEATS):
            number, seed = ledger.parse_repeat_name(name)
            if number not in self._rows:  # of a search whose journal was taken away
                continue
            values = self._rows[number].values
            row = self._read_row(number, values, "", place=ledger.REPEATS, name=name, ended=False)
            if row.status == "finished" or (row.status == "failed" and failure_kind(row.reason) not in TRIED_AGAIN):
                self._repeats[name] = ledger.repeat_of(row, seed)

    def _read_back_open(self, asked: Asked) -> None:
        """A trial that no start has told the end of."""
        task = self._task(asked)
        if task is None:
            return
        if asked.verdict:
            self._verdicts[task.name] = asked.verdict
        curve = self._read_row(asked.number, asked.values, "", ended=False).curve
        for epochs, figure in sorted(curve.items()):  # those that no start has heard of are judged now
            self._judge(task, epochs, figure)
        verdict = self._verdicts.get(task.name, "")
        row = self._read_row(asked.number, asked.values, "", verdict=verdict, ended=False)
        if row.status in ("finished", "pruned", "failed") and failure_kind(row.reason) not in TRIED_AGAIN:
            self._settle(task, row)  # ended, and its driver died before it could tell
            self._publish_events(asked.number)
            return
        self._open[asked.number] = row
        self._left.append(task)

    # Ends -----------------------------------------------------------------------------------------

    def _read(self, task: Task, reason: str) -> TrialRow:
        """What a trial or a repetition that is at work no more came to, as a row."""
        verdict = self._verdicts.get(task.name, "")
        return self._read_row(task.number, task.values, reason, verdict=verdict, place=task.place, name=task.name)

    def _read_row(
        self,
        number: int,
        values: Mapping[str, Any],
        reason: str,
        *,
        place: str = ledger.TRIALS,
        name: str = "",
        verdict: str = "",
        ended: bool = True,
    ) -> TrialRow:
        run, metric = self._place(place, name or ledger.trial_name(number, values)), self._plan.metric
        row = ledger.read_trial(run, metric, number=number, values=values, reason=reason, verdict=verdict, ended=ended)
        if row.status == "finished" and (row.figure is None or not math.isfinite(row.figure)):
            return replace(row, status="failed", reason=f"it gave no figure of {self._plan.metric}")
        return row

    def _put_back(self, task: Task, row: TrialRow) -> str:
        """Why a training that came to no end of its own is done again, now or by a later start; empty if it is not."""
        tries = 0 if self.stopping or self._spent() else self._tries[task.name]
        fate = fate_of(row.status, row.reason, tries)
        if fate == "settled":
            return ""
        if fate == "hopeless":
            self.stopping, self.trouble = True, f"{task.name} cannot be run here: {row.reason or 'it was stopped'}"
        if task.place == ledger.TRIALS:
            self._open[task.number] = replace(row, status="stopped", reason="")
            self._left.append(task)
        return f"{task.name} stopped" if row.status == "stopped" else f"{task.name} is to be tried again: {row.reason}"

    def _settle(self, task: Task, row: TrialRow) -> None:
        """An end for good, into the study and the leaderboard."""
        if task.place == ledger.REPEATS:
            self._repeats[task.name] = ledger.repeat_of(row, task.config.train.seed)
            return
        number = task.number
        if row.status == "finished":
            for epochs, figure in row.curve.items():
                self._study.report(number, epochs, figure)
            self._study.complete(number, cast(float, row.figure))
        elif row.status == "pruned":
            self._study.prune(number, row.reason)
        else:
            self._study.fail(number, row.reason)
        self._open.pop(number, None)
        self._rows[number] = row

    # What comes next ------------------------------------------------------------------------------

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
        row = TrialRow(number=asked.number, name=name, status="stopped", values=asked.values)
        try:
            config = self._plan.trial_config(name, asked.values)
        except XdistError as error:
            self._study.fail(asked.number, str(error))
            self._rows[asked.number] = replace(row, status="failed", reason=str(error))
            return None
        self._open[asked.number] = row
        return Task(name=name, place=ledger.TRIALS, number=asked.number, values=asked.values, config=config)

    def _ask(self) -> Asked | None:
        limit = self._plan.search.trials
        if self._exhausted:
            return None
        if limit and len(self._rows) + len(self._open) >= limit:
            return None
        asked = self._study.ask()
        self._exhausted = asked is None
        return asked

    def _next_repeat(self) -> Task | None:
        """Once all trials have ended: which are the best is known then."""
        return None if self._open or self._spent() else next(self._repeats_to_do(), None)

    def _repeats_to_do(self) -> Iterator[Task]:
        for row, seed, name in self._planned_repeats():
            if name in self._live or name in self._repeats:
                continue
            config = self._plan.trial_config(name, row.values, seed=seed)
            yield Task(name=name, place=ledger.REPEATS, number=row.number, values=row.values, config=config)

    def _planned_repeats(self) -> Iterator[tuple[TrialRow, int, str]]:
        """(row, seed, name) of each repetition that this search is to have: of the best by one seed."""
        search = self._plan.search
        ended = [row for row in self._rows.values() if row.status == "finished"]
        for row in rank(ended, self._plan.direction)[: search.repeat_top]:
            first = self._plan.trial_config(row.name, row.values).train.seed
            for seed in range(first + 1, first + search.repeat_seeds):
                yield row, seed, ledger.repeat_name(row.number, seed)

    def _repeats_of(self, number: int) -> tuple[Repeat, ...]:
        found = (repeat for repeat in self._repeats.values() if repeat.number == number)
        return tuple(sorted(found, key=lambda repeat: repeat.seed))

    def _spent(self) -> str:
        """Which limit of the search is reached; empty while none is."""
        search = self._plan.search
        # Once reached, it stays so in this start, though a trial that has ended may have cost less than was thought.
        if not self._limit and search.hours and self.seconds >= search.hours * _HOUR_S:
            self._limit = f"search.hours={search.hours:g} is used up"
        if not self._limit and search.gpu_hours and self._gpu_seconds() >= search.gpu_hours * _HOUR_S:
            self._limit = f"search.gpu_hours={search.gpu_hours:g} is used up"
        return self._limit

    def _gpu_seconds(self) -> float:
        """Of all trials so far; those at work count from when they were started."""
        now, repeats = self._clock(), [task for task in self._live.values() if task.place == ledger.REPEATS]
        trials = sum(row.worker_seconds for row in self._all_rows())
        ended = sum(repeat.worker_seconds for repeat in self._repeats.values())
        return trials + ended + sum((now - task.started) * task.config.scale.most for task in repeats)

    def _place(self, place: str, name: str) -> Any:
        return self.folder.store.child(place).child(name)

    def _run(self, name: str) -> Any:
        return self._place(ledger.TRIALS, name)

    def _keep_journal(self) -> None:
        with self._writing:
            self.folder.publish(ledger.JOURNAL, self._journal.read_bytes())

    def _note_report(self) -> None:
        """So that no later start judges the epoch again, when others have come further; the next writing has it too."""
        with self._writing, suppress(StoreError):
            self._record.quick.publish(ledger.JOURNAL, self._journal.read_bytes())


def _went_on(row: TrialRow, epochs: int, figure: float, direction: Direction) -> TrialRow:
    """A row of a trial at work, one epoch later."""
    curve = {**row.curve, epochs: figure} if math.isfinite(figure) else dict(row.curve)
    best = max if direction == "maximize" else min
    at = best(curve, key=lambda epoch: curve[epoch], default=None)
    return replace(
        row,
        epochs=max(row.epochs, epochs),
        curve=curve,
        figure=None if at is None else curve[at],
        selected_epoch=at,
    )


def _said(task: Task, row: TrialRow, metric: str) -> str:
    """How a trial ended, on one line."""
    if task.place == ledger.REPEATS:
        came_to = f"{metric} {row.figure:.4f}" if row.status == "finished" else f"failed: {row.reason}"
        return f"repeat {task.name}: {came_to}"
    if row.status == "failed":
        return f"trial {row.name} failed: {row.reason}"
    how = f"stopped early, {row.reason}:" if row.status == "pruned" else row.status
    figure = f" {metric} {row.figure:.4f} (epoch {row.selected_epoch})" if row.figure is not None else ""
    return f"trial {row.name} {how}{figure}"
