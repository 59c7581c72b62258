"""Replays on a table made up here; the recorded table is as the present settings would record it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench.replay import Replay, replay
from tests.bench.search_table import SearchTable, StaleTableError, Trained, read_table, table_space, write_table
from tests.tune_spaces.written import write_space
from xdist_train.config import resolve_config

_RATES = (1e-4, 1e-3, 4e-3, 1e-2, 1e-1, 1.0)
_SPACE = write_space(
    f"optim.name: {{choice: [adamw, sgd]}}\noptim.lr: {{choice: {list(_RATES)}}}\nmodel.hidden: {{choice: [0, 8, 16]}}"
)
_OWN = _SPACE.locate(resolve_config("demo", [])).params
_BEST = {"optim.name": "sgd", "optim.lr": 1e-2, "model.hidden": 8}


def _trained(values: dict[str, Any]) -> Trained:
    """Curves that rise to 1 at best and fall again a little in the last epoch; the largest rate fails."""
    if values["optim.lr"] == 1.0:
        return Trained(values=values, curve=(0.1,), reason="non_finite_loss: too large")
    far = abs(_RATES.index(values["optim.lr"]) - _RATES.index(_BEST["optim.lr"]))
    top = 1.0 - 0.2 * far - 0.1 * (values["optim.name"] == "adamw") - 0.05 * (values["model.hidden"] != 8)
    return Trained(values=values, curve=(*(round(top * epoch / 8, 6) for epoch in range(1, 9)), round(top - 0.01, 6)))


_TABLE = SearchTable([_trained(_SPACE.values_of(params)) for params in _SPACE.grid()], epochs=9)


def _replay(sampler: str = "tpe", scheduler: str = "asha", seed: int = 0, **options: Any) -> Replay:
    return replay(_TABLE, _SPACE, _OWN, sampler=sampler, scheduler=scheduler, seed=seed, **options)


def _epochs(replayed: Replay) -> list[tuple[str, int]]:
    return [(trial.status, trial.epochs) for trial in replayed.trials]


def test_the_figure_of_a_row_is_its_best_epoch() -> None:
    """As a run's is; a failed one has none, and all regret."""
    best, failed = _TABLE.row(_BEST), _TABLE.row({**_BEST, "optim.lr": 1.0})
    assert _TABLE.best == best
    assert (1.0, None) == (best.figure, failed.figure)
    assert (0.0, 1.0) == (_TABLE.regret(best.values), _TABLE.regret(failed.values))


def test_a_grid_finds_the_best() -> None:
    """All rows to their end, but for those that fail in their second epoch, which counts."""
    replayed = _replay("grid", "none")
    assert [("finished", 9)] * 30 + [("failed", 1)] * 6 == sorted(_epochs(replayed), reverse=True)
    assert 30 * 9 + 6 * 2 == replayed.epochs
    assert 0.0 == replayed.regret_at(replayed.epochs)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("scheduler", ["none", "asha", "median"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_regret_never_rises_once_a_trial_has_finished(sampler: str, scheduler: str, concurrency: int) -> None:
    """What is chosen by then is chosen by figures that stay."""
    for seed in range(3):
        replayed = _replay(sampler, scheduler, seed, epochs_budget=120, concurrency=concurrency)
        finished = {trial.number for trial in replayed.trials if trial.status == "finished"}
        regrets = [at.regret for at in replayed.incumbents if at.number in finished][9 * concurrency :]
        assert regrets
        assert sorted(regrets, reverse=True) == regrets


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_budget_of_epochs_is_kept(concurrency: int) -> None:
    """To the epoch; trials that it cuts off are still running."""
    replayed = _replay(epochs_budget=50, concurrency=concurrency)
    assert 50 == replayed.epochs
    assert 50 == sum(trial.epochs + (trial.status == "failed") for trial in replayed.trials)
    assert sum(trial.status == "running" for trial in replayed.trials) <= concurrency


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_number_of_trials_is_kept(concurrency: int) -> None:
    """And each of them comes to an end."""
    replayed = _replay(trials=7, concurrency=concurrency)
    assert list(range(7)) == [trial.number for trial in replayed.trials]
    assert "running" not in {trial.status for trial in replayed.trials}


def test_trials_side_by_side_take_turns() -> None:
    """Three at a time, nothing stopped: after 9 rounds all are through."""
    replayed = _replay("grid", "none", epochs_budget=27, concurrency=3)
    done = [epochs for status, epochs in _epochs(replayed) if status == "finished"]
    assert [9] * len(done) == done
    assert max(trial.number for trial in _replay("random", "none", epochs_budget=3, concurrency=3).trials) == 2


def test_equal_seeds_replay_the_same() -> None:
    """And other seeds another search."""
    first, same, other = (_replay(seed=seed, epochs_budget=90) for seed in (1, 1, 2))
    assert first == same != other


def test_the_first_trial_is_the_recipe_and_its_regret_stands_until_a_better_one_finishes() -> None:
    """Its last report counts until it has finished; an epoch earlier nothing is known."""
    replayed = _replay(scheduler="none", epochs_budget=9)
    own = _TABLE.regret(_SPACE.values_of(_OWN))
    assert [own] * 9 == [at.regret for at in replayed.incumbents]
    assert (1.0, own) == (replayed.regret_at(0), replayed.regret_at(9))


def test_asha_stops_trials_at_its_rungs() -> None:
    """After 1 and 3 epochs; who passes both runs on to the end, or into its failure."""
    for status, epochs in _epochs(_replay(trials=40)):
        assert epochs in {"pruned": (1, 3), "failed": (1,), "finished": (9,)}[status]


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    """With its notes."""
    path, settings = tmp_path / "table.parquet", {"space": _SPACE.to_dict(), "config": {"train.epochs": 9}}
    write_table(SearchTable(_TABLE.rows, 9, {"versions": "torch 9"}), path, settings)
    found = read_table(path, settings)
    assert (9, {"versions": "torch 9"}) == (found.epochs, found.notes)
    assert [_summary(row) for row in _TABLE.rows] == [_summary(row) for row in found.rows]
    assert [path] == list(tmp_path.iterdir())


def _summary(row: Trained) -> tuple[dict[str, Any], Sequence[float], str]:
    return dict(row.values), row.curve, row.reason


def test_a_stale_table_is_refused(tmp_path: Path) -> None:
    """By what differs, and with the command that records it anew."""
    path = tmp_path / "table.parquet"
    write_table(_TABLE, path, {"space": {"a": 1}, "config": {"train.epochs": 9}})
    with pytest.raises(StaleTableError) as caught:
        read_table(path, {"space": {"a": 1}, "config": {"train.epochs": 10}})
    assert str(caught.value) == (
        "table.parquet was recorded under another config. Record it anew: python -m tests.bench.record_search_table"
    )


def test_the_recorded_table_is_that_of_the_present_settings() -> None:
    """Every configuration once; neither all equal, nor all good, and the recipe is not the best."""
    table, space = read_table(), table_space()
    assert [space.values_of(params) for params in space.grid()] == [dict(row.values) for row in table.rows]
    assert len(table.rows) >= 100
    assert {table.epochs} == {len(row.curve) for row in table.rows if not row.reason}
    figures = sorted(row.figure or 0.0 for row in table.rows)
    assert figures[0] < 0.3 < 0.7 < figures[-1] < 1.0
