"""A repetition at work: which part is next, what came of each, and the record of it. Knows no Ray.

    <storage>/<repetition>/run.json       as of a run, and `parts`      replaced whole, at each start and end of a part
                           parts/<name>/  run folders, one a fold and seed
                           repeat.json    parts and figures, see `result.py`               when all has ended, as are
                           predictions/test.parquet, evaluation/test.json                  these, of all folds pooled

What has finished is in its part's folder, so nothing need be told twice: another start reads it from there.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from cluster.runs import RUN, RunFolder, evaluation_key, read_record
from cluster.store import Store
from tune_spaces.leaderboard import TrialRow
from tune_spaces.ledger import read_trial
from tune_spaces.parts import Part
from tune_spaces.task import Task, fate_of, launch_config
from xdist_train.config import Config
from xdist_train.evidence.metrics import FIGURES
from xdist_train.evidence.tables import TITLES
from xdist_train.training.messages import Ending
from xdist_train.training.record import RunRecord

__all__ = ["PARTS", "RepeatPlan", "Repetition"]

PARTS = "parts"


@dataclass(frozen=True, kw_only=True)
class RepeatPlan:
    """What a repetition is told, checked."""

    name: str
    config: Config
    """Of all parts, but for `data.split` and `train.seed`; all paths absolute."""
    parts: tuple[Part, ...]
    """In the order in which they start."""
    concurrency: int
    """Parts at a time."""
    use_gpu: bool

    @property
    def metric(self) -> str:
        """The figure on test that it is told by: `train.metric`, where that is one on test too."""
        metric = self.config.train.metric
        return metric if metric in FIGURES else "balanced_accuracy"

    def part_config(self, part: Part) -> Config:
        """A part's configuration: one of many launches, evaluated on its own test once."""
        config = launch_config(self.config, part.name, use_gpu=self.use_gpu)
        return replace(
            config,
            data=replace(config.data, split=part.split),
            train=replace(config.train, seed=part.seed),
            evaluate=replace(config.evaluate, test=True),
        )


class Repetition:
    """One start of a repetition.

    Args:
        plan: what it is told.
        record: of `run.json`; its folder is this start's own.
        changed: called when a part has started or ended, with a line that says so.
        clock: seconds.
    """

    def __init__(
        self,
        plan: RepeatPlan,
        record: RunRecord,
        *,
        changed: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._record, self._changed, self._clock = plan, record, changed, clock
        self._lock = threading.RLock()
        # Whoever writes into the folder holds this one, and takes it before the other or without it.
        self._writing = threading.RLock()
        self._rows = {part.name: self._read(part, ended=False) for part in plan.parts}
        self._values = {part.name: self._value(part) for part in plan.parts}
        self._left = [part for part in plan.parts if self._rows[part.name].status != "finished"]
        self._live: dict[str, tuple[Part, Task]] = {}
        self._tries: Counter[str] = Counter()
        self.stopping = False
        """Whether no more parts are to start, and those at work are to stop."""
        self.trouble = ""
        """Why it stops, where nobody asked for it."""

    @property
    def plan(self) -> RepeatPlan:
        """What it is told."""
        return self._plan

    @property
    def record(self) -> RunRecord:
        """Of `run.json`."""
        return self._record

    @property
    def folder(self) -> RunFolder:
        """Where it is kept."""
        return self._record.folder

    def run_of(self, part: Part) -> Store:
        """A part's run folder."""
        return self.folder.store.child(PARTS).child(part.name)

    def rows(self) -> list[tuple[Part, TrialRow]]:
        """How each part stands, in their order; one that waits for its turn is `stopped`."""
        with self._lock:
            return [(part, self._row(part)) for part in self._plan.parts]

    def next(self) -> Task | None:
        """What to run now; None if there is no room, or nothing more."""
        with self._lock:
            if self.stopping or not self._left or len(self._live) >= self._plan.concurrency:
                return None
            part = self._left.pop(0)
            task = Task(name=part.name, place=PARTS, config=self._plan.part_config(part), started=self._clock())
            self._live[part.name] = (part, task)
            self._tries[part.name] += 1
        self._changed(f"part {part.name} starts")
        return task

    def is_pruned(self, name: str) -> bool:
        """Never: every part comes to its end."""
        return False

    def report(self, name: str, epochs: int, figure: float | None) -> Ending | None:
        """Nothing is decided by it."""
        return None

    def end(self, name: str, reason: str = "") -> None:
        """A part is at work no more; what came of it is in its run folder."""
        with self._lock:
            part, _ = self._live[name]
        row, value = self._read(part, reason), self._value(part)
        with self._lock:
            del self._live[name]
            fate = fate_of(row.status, row.reason, 0 if self.stopping else self._tries[name])
            self._rows[name], self._values[name] = row, value
            if fate != "settled":
                self._left.append(part)
            if fate == "hopeless":
                self.stopping, self.trouble = True, f"{name} cannot be run here: {row.reason or 'it was stopped'}"
        self.write()
        self._changed(self._said(row, again=fate == "again" and not self.stopping))

    def write(self, **changes: object) -> None:
        """Change values of `run.json` and publish it."""
        with self._writing:
            self._record.write(**self._counted(), **changes)

    def beat(self) -> None:
        """`run.json` with a sign of life, now and then; not where somebody else is at the storage."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            self._record.beat(parts=self._counted()["parts"])
        finally:
            self._writing.release()

    def finish(self, status: str, **changes: object) -> None:
        """The last word of this start."""
        with self._writing:
            self._record.end(status, **self._counted(), **changes)

    def _counted(self) -> dict[str, object]:
        rows = self.rows()
        return {
            "parts": [
                {"name": part.name, "status": row.status, "reason": row.reason, "value": self._values[part.name]}
                for part, row in rows
            ],
            "worker_seconds": sum(row.worker_seconds for _, row in rows),
        }

    def _row(self, part: Part) -> TrialRow:
        row = self._rows[part.name]
        if part.name not in self._live:
            return row
        _, task = self._live[part.name]
        spent = (self._clock() - task.started) * task.config.scale.most
        return replace(row, status="running", reason="", worker_seconds=row.worker_seconds + spent)

    def _read(self, part: Part, reason: str = "", *, ended: bool = True) -> TrialRow:
        """A part's row, from its run folder; one that no start has told the end of has stopped."""
        number, metric = self._plan.parts.index(part), self._plan.config.train.metric
        row = read_trial(self.run_of(part), metric, number=number, values={}, reason=reason, ended=ended)
        return replace(row, status="stopped") if row.status == "running" else row

    def _value(self, part: Part) -> float | None:
        """The part's own figure on test; None where it has none yet."""
        run = self.run_of(part)
        if not run.exists(RUN) or evaluation_key("test") not in read_record(run)["complete"]:
            return None
        return cast(float | None, run.read_json(evaluation_key("test"))[self._plan.metric]["value"])

    def _said(self, row: TrialRow, *, again: bool) -> str:
        """How a part ended, on one line."""
        if again:
            return f"part {row.name} is to be tried again: {row.reason or row.status}"
        if row.status == "failed":
            return f"part {row.name} failed: {row.reason}"
        done = sum(other.status == "finished" for _, other in self.rows())
        value = self._values[row.name]
        came_to = "" if value is None else f": {TITLES[self._plan.metric]} {value:.4f} on test"
        epoch = f" (epoch {row.selected_epoch})" if row.selected_epoch else ""
        return f"part {row.name} {row.status}{came_to}{epoch}; {done} of {len(self._plan.parts)} have finished"
