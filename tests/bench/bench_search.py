"""Search on a recorded table, 100 seeds: regret of the trial chosen; spread is the median's 95 % interval.

The table (`search_table.parquet`, made by `python -m tests.bench.record_search_table`) holds the learning curve of
every configuration of `search_space.yaml`, each trained once. A search is replayed on it one trial at a time, by the
study that a real search asks. Regret is by how much balanced accuracy on val of the best row is above that of the
row that the search would choose. Budgets are epochs of all trials together, told in whole trainings of 9 epochs.
Searches with equal seeds are pairs: they start with the recipe's own trial. Ratios are those of the medians.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.bench.replay import Replay, replay
from tests.bench.results import Row, measured, versions
from tests.bench.search_table import OVERRIDES, RECIPE, SearchTable, read_table, table_space
from xdist_train.config import resolve_config

__all__ = ["median_interval", "rows"]

COMMAND = "python -m tests.bench search"
_OURS, _CHANCE = ("tpe", "asha"), ("random", "none")
_SEARCHES = (_OURS, _CHANCE, ("tpe", "none"), ("random", "asha"))
_BUDGETS = (10, 20, 40)
"""In whole trainings."""
_SEEDS = range(100)
_NUM_RESAMPLES = 10_000

Figures = npt.NDArray[np.float64]


def rows() -> Iterable[Row]:
    """Regret of each search at each budget, and the paired difference of ours and chance."""
    table = read_table()
    details = {"versions": versions("optuna", "numpy"), "command": COMMAND}
    own = table.row(table_space().locate(resolve_config(RECIPE, OVERRIDES)).values)
    spread = [row.figure or 0.0 for row in table.rows]
    yield measured(f"table: balanced accuracy of its {len(table.rows)} rows", spread, unit="", **details)
    yield measured("regret of the recipe's own row", [table.regret(own.values)], unit="", **details)
    seconds, replays = [], {}
    for search in _SEARCHES:
        started = time.perf_counter()
        replays[search] = _replay_all(table, *search)
        seconds.append((time.perf_counter() - started) / len(_SEEDS))
    for budget in _BUDGETS:
        regrets = {search: _regrets(found, budget * table.epochs) for search, found in replays.items()}
        for search in _SEARCHES:
            goal = "ratio < 1" if search == _OURS else ""
            yield _regret_row(search, budget, regrets[search], regrets[_CHANCE], goal, details)
        yield _difference_row(budget, regrets[_CHANCE] - regrets[_OURS], details)
    tried = [float(len(found.trials)) for found in replays[_OURS]]
    yield measured(f"tpe + asha: trials within {_BUDGETS[-1]} trainings", tried, unit="trials", **details)
    yield measured("one replay of each search", seconds, unit="s", **details)


def _replay_all(table: SearchTable, sampler: str, scheduler: str) -> list[Replay]:
    space = table_space()
    own = space.locate(resolve_config(RECIPE, OVERRIDES)).params
    budget = _BUDGETS[-1] * table.epochs
    return [
        replay(table, space, own, sampler=sampler, scheduler=scheduler, seed=seed, epochs_budget=budget)
        for seed in _SEEDS
    ]


def _regrets(found: Sequence[Replay], epochs: int) -> Figures:
    return np.asarray([replayed.regret_at(epochs) for replayed in found])


def _regret_row(
    search: tuple[str, str], budget: int, regrets: Figures, chance: Figures, goal: str, details: dict[str, Any]
) -> Row:
    row = _median_row(f"{' + '.join(search)}, {budget} trainings: regret", regrets, goal, details)
    base = float(np.median(chance))
    if search == _CHANCE or not base:
        return row
    return Row(**{**vars(row), "against": " + ".join(_CHANCE), "ratio": row.median / base})


def _difference_row(budget: int, differences: Figures, details: dict[str, Any]) -> Row:
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    what = f"{budget} trainings: by how much tpe + asha has less regret (pairs: less {better}, more {worse})"
    return _median_row(what, differences, "interval above 0", details)


def _median_row(what: str, values: Figures, goal: str, details: dict[str, Any]) -> Row:
    row = measured(what, values.tolist(), unit="", goal=goal, **details)
    return Row(**{**vars(row), "spread": median_interval(values)})


def median_interval(values: Figures) -> tuple[float, float]:
    """95 % percentile interval of the median over bootstrap resamples (Efron 1979)."""
    draws = np.random.default_rng(0).integers(0, len(values), (_NUM_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)
