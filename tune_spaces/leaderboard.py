"""The leaderboard of a search: one row a trial, best first, each row what the run folder that it names says.

Pure values: reads and writes nothing.
"""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tune_spaces.domains import label
from tune_spaces.study import Direction

__all__ = ["Leaderboard", "Repeat", "Status", "TrialRow", "leaderboard_csv", "leaderboard_parquet", "rank"]

Status = Literal["finished", "pruned", "failed", "stopped", "running"]


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One more training of a trial's configuration, with another seed."""

    name: str
    """Its run folder under `repeats/`."""
    number: int
    """Of the trial."""
    seed: int
    status: Status
    figure: float | None
    """None if it did not finish."""
    worker_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial, as its run folder says."""

    number: int
    """Order in which it was asked for, from 0."""
    name: str
    """Its run folder under `trials/`."""
    status: Status
    reason: str = ""
    """Why it failed or was pruned."""
    values: Mapping[str, Any]
    """What it lays over the recipe, by dotted key; a key that does not exist in its case is absent."""
    figure: float | None = None
    """The metric on val of the epoch that was selected; None if there was none."""
    selected_epoch: int | None = None
    """From 1."""
    epochs: int = 0
    """Epochs done."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """The metric on val by epochs done."""
    train_seconds: float = 0.0
    """In the training loop, evaluation between epochs with it."""
    worker_seconds: float = 0.0
    """Of all workers together, their start with it."""
    test_evaluations: int = 0
    """How often its model was evaluated on test."""
    repeats: tuple[Repeat, ...] = ()
    """With other seeds."""

    @property
    def figures(self) -> list[float]:
        """Of all seeds."""
        figures = [self.figure, *(repeat.figure for repeat in self.repeats)]
        return [figure for figure in figures if figure is not None]

    @property
    def mean(self) -> float | None:
        """Over seeds, where there are several."""
        return statistics.fmean(self.figures) if self.repeats and self.figures else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1)."""
        return statistics.stdev(self.figures) if self.repeats and len(self.figures) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """A search as its files and its page tell it."""

    name: str
    recipe: str
    """As the user named it."""
    space: str
    """As the user named it."""
    metric: str
    direction: Direction
    settings: Mapping[str, Any]
    """`search.*`, as plain values."""
    status: str
    """Of the search: running, finished, stopped or failed."""
    rows: tuple[TrialRow, ...]
    """Best first: finished ones, then those stopped early, then the rest, by number."""
    best: str | None = None
    """Name of the trial that was chosen; None if none finished."""
    own: str | None = None
    """Name of the trial with the recipe's own values; None if they lie outside of the space."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Keys whose value in the recipe no trial can have, with the reason."""
    test: Mapping[str, Any] | None = None
    """The figures of the chosen trial's model on test (`evaluation/test.json`); None if not evaluated."""
    tested: tuple[str, ...] = ()
    """Trials whose models were evaluated on test so far: more than one where the best changed from start to start."""
    seconds: float = 0.0
    """From the first start to now, over all starts, without the pauses between them."""
    workers: int = 1
    """Of a trial."""
    use_gpu: bool = False

    def row(self, name: str | None) -> TrialRow | None:
        """The row of a trial by its name."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def worker_seconds(self) -> float:
        """Of all trials and repetitions."""
        return sum(row.worker_seconds + sum(repeat.worker_seconds for repeat in row.repeats) for row in self.rows)


_ORDER: dict[str, int] = {"finished": 0, "pruned": 1, "stopped": 2, "running": 2, "failed": 3}


def rank(rows: Sequence[TrialRow], direction: Direction, *, top: int = 0, seeds: int = 0) -> tuple[TrialRow, ...]:
    """Best first. A trial that was stopped early never stands above a finished one: its figure is of fewer epochs.

    Of the `top` finished ones by their own figure, those of which all `seeds` have a figure come first, by their mean:
    so the order depends on figures alone, not on when which repetitions were done.
    """
    sign = -1 if direction == "maximize" else 1

    def key(row: TrialRow) -> tuple[int, float, int]:
        return _ORDER[row.status], math.inf if row.figure is None else sign * row.figure, row.number

    by_figure = sorted(rows, key=key)
    repeated = [row for row in by_figure[:top] if row.status == "finished" and len(row.figures) >= seeds]
    repeated.sort(key=lambda row: (sign * statistics.fmean(row.figures), row.number))
    return (*repeated, *(row for row in by_figure if row not in repeated))


def leaderboard_parquet(board: Leaderboard) -> bytes:
    """`leaderboard.parquet`: a row a trial, one column a key of the space (as text), curves as lists."""
    buffer = io.BytesIO()
    pa.parquet.write_table(_table(board, curves=True), buffer)
    return buffer.getvalue()


def leaderboard_csv(board: Leaderboard) -> bytes:
    """`leaderboard.csv`: the same without curves."""
    buffer = io.BytesIO()
    pa.csv.write_csv(_table(board, curves=False), buffer)
    return buffer.getvalue()


def _table(board: Leaderboard, *, curves: bool) -> pa.Table:
    rows = board.rows
    columns: dict[str, pa.Array] = {
        "rank": pa.array(range(1, len(rows) + 1), pa.int32()),
        "number": pa.array([row.number for row in rows], pa.int32()),
        "name": pa.array([row.name for row in rows], pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
        board.metric: pa.array([row.figure for row in rows], pa.float64()),
        "selected_epoch": pa.array([row.selected_epoch for row in rows], pa.int32()),
        "epochs": pa.array([row.epochs for row in rows], pa.int32()),
        "mean_over_seeds": pa.array([row.mean for row in rows], pa.float64()),
        "spread_over_seeds": pa.array([row.spread for row in rows], pa.float64()),
        "seeds": pa.array([len(row.figures) if row.repeats else None for row in rows], pa.int32()),
        "train_seconds": pa.array([row.train_seconds for row in rows], pa.float64()),
        "worker_seconds": pa.array([row.worker_seconds for row in rows], pa.float64()),
        "reason": pa.array([row.reason for row in rows], pa.string()),
    }
    for key in dict.fromkeys(key for row in rows for key in row.values):
        columns[key] = _column([row.values.get(key) for row in rows])
    if curves:
        points = pa.list_(pa.float64())
        columns["curve_epochs"] = pa.array([sorted(row.curve) for row in rows], pa.list_(pa.int32()))
        columns["curve"] = pa.array([[row.curve[k] for k in sorted(row.curve)] for row in rows], points)
        columns["repeats"] = pa.array([json.dumps([repeat.name for repeat in row.repeats]) for row in rows])
    return pa.table(columns)


def _column(values: Sequence[Any]) -> pa.Array:
    """Numbers as numbers; all else, lists and mixed ones, as text."""
    if all(value is None or type(value) is int for value in values):
        return pa.array(values, pa.int64())
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else label(value) for value in values], pa.string())
