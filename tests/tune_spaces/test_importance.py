"""Importances: they find what decides, and say nothing where there is nothing to say."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tune_spaces.boards import make_board, make_row, oct_board, oct_space
from tests.tune_spaces.written import EVERYTHING, write_space
from tune_spaces.importance import LEAST_TRIALS, importances
from tune_spaces.leaderboard import Leaderboard
from tune_spaces.space import Space
from tune_spaces.study import Direction, open_study

_FOUR = write_space(
    "optim.lr: {loguniform: [1.0e-4, 1.0]}\noptim.name: {choice: [adamw, sgd]}\n"
    "train.accumulation_steps: {randint: [1, 8]}\nmodel.dropout: {uniform: [0, 0.5], step: 0.1}"
)
_EVERYTHING = write_space(EVERYTHING)
# One key decides alone; the names of the tests.
_RESPONSES: dict[str, Callable[[dict[str, Any]], float]] = {
    "optim.lr": lambda values: -abs(math.log10(values["optim.lr"] / 0.03)),
    "optim.name": lambda values: float(values["optim.name"] == "sgd"),
    "train.accumulation_steps": lambda values: -abs(values["train.accumulation_steps"] - 3) / 3,
    "model.dropout": lambda values: 3 * values["model.dropout"],
}


def _values(space: Space, number: int, seed: int = 0) -> list[dict[str, Any]]:
    study = open_study(space, {}, sampler="random", seed=seed)
    return [asked.values for asked in (study.ask() for _ in range(number)) if asked is not None]


def _board(
    space: Space, number: int, response: Callable[[dict[str, Any]], float], direction: Direction = "maximize"
) -> Leaderboard:
    """Finished trials, with noise on the response."""
    chance = random.Random(0)
    values = _values(space, number)
    rows = [make_row(n, response(one) + chance.gauss(0, 0.2), values=one) for n, one in enumerate(values)]
    return make_board(rows, direction=direction)


@pytest.mark.parametrize("key", _RESPONSES)
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_key_that_decides_is_first(key: str, direction: Direction) -> None:
    """Of every kind, and whichever way is better; it alone is far above what chance reaches."""
    sign = 1 if direction == "maximize" else -1
    found = importances(_board(_FOUR, 40, lambda values: sign * _RESPONSES[key](values), direction), _FOUR)
    assert key == next(iter(found))
    assert (found[key].value or 0) > 2 * (found[key].chance or 1)
    assert 40 == found[key].num_trials


def test_a_choice_counts_as_much_as_a_range() -> None:
    """The best quarter all has one of two values: a third of the variance, whatever smoothing would leave."""
    found = importances(_board(_FOUR, 200, _RESPONSES["optim.name"]), _FOUR)
    assert 1 / 3 == pytest.approx(found["optim.name"].value, abs=0.08)


def test_without_an_effect_few_pass_chance() -> None:
    """One in twenty does; here of 4 keys in 5 searches."""
    clear = 0
    for seed in range(5):
        chance = random.Random(seed)
        rows = [make_row(n, chance.random(), values=one) for n, one in enumerate(_values(_FOUR, 20, seed))]
        clear += sum(one.is_clear for one in importances(make_board(rows), _FOUR).values())
    assert clear <= 3


def test_a_key_is_judged_by_the_trials_that_have_it() -> None:
    """Momentum decides where there is one, and half of the trials have none."""
    space = write_space(
        "optim.name: {choice: [adamw, sgd]}\noptim.momentum: {by: optim.name, cases: {sgd: {uniform: [0.8, 0.98]}}}\n"
        "model.dropout: {uniform: [0, 0.5]}"
    )
    board = _board(space, 80, lambda values: 8 * values.get("optim.momentum", 0.89))
    found = importances(board, space)
    assert "optim.momentum" == next(iter(found))
    assert found["optim.momentum"].num_trials == sum("optim.momentum" in row.values for row in board.rows) < 60
    assert 80 == found["optim.name"].num_trials


def test_stopped_trials_count_by_how_far_they_came() -> None:
    """Whatever their figure: the optimiser decides on high ones after one epoch, the rate on those at the end."""
    rows = []
    for number, values in enumerate(_values(_FOUR, 60)):
        early, late = 0.8 + 0.1 * _RESPONSES["optim.name"](values), 0.5 + 0.1 * _RESPONSES["optim.lr"](values)
        stopped: dict[str, Any] = {"status": "pruned", "curve": {1: early}, "epochs": 1}
        rows.append(make_row(number, early if number % 2 else late, values=values, **(stopped if number % 2 else {})))
    found = importances(make_board(rows), _FOUR)
    assert "optim.lr" == next(iter(found))
    assert not found["optim.name"].is_clear


def test_stopped_trials_are_compared_at_equal_epochs() -> None:
    """Where nothing finished, the farthest are the best, and among these those with the better last figure."""
    rows = []
    for number, values in enumerate(_values(_FOUR, 60)):
        epochs = 1 + 3 * (values["optim.name"] == "sgd")
        curve = {epoch: 0.9 / epoch for epoch in range(1, epochs + 1)}
        rows.append(make_row(number, 0.9, values=values, status="pruned", curve=curve, epochs=epochs))
    found = importances(make_board(rows), _FOUR)
    assert ["optim.name"] == [key for key, one in found.items() if (one.value or 0) > 0.9]


def test_failed_and_cut_short_trials_do_not_count() -> None:
    """Nothing is known of how they would have ended."""
    values = _values(_FOUR, 30)
    ends = ["finished", "failed", "stopped", "running", "pruned"]
    rows = [make_row(n, n / 30, status=ends[n % 5], values=one) for n, one in enumerate(values)]
    assert {12} == {one.num_trials for one in importances(make_board(rows), _FOUR).values()}


@pytest.mark.parametrize(
    ("number", "figure", "reason"),
    [
        (0, lambda n: 0.5, "no trial with it came to an end"),
        (LEAST_TRIALS - 1, lambda n: n / 10, "are the least that say anything"),
        (20, lambda n: 0.5, "the same figure"),
        (20, lambda n: float(n == 3), "the same figure"),
    ],
)
def test_no_number_without_ground(number: int, figure: Callable[[int], float], reason: str) -> None:
    """Too few trials, equal figures: the reason stands there instead."""
    rows = [make_row(n, figure(n), values=one) for n, one in enumerate(_values(_FOUR, number))]
    found = importances(make_board(rows), _FOUR)
    assert list(_FOUR.specs) == list(found)
    assert all(one.value is None and one.chance is None and reason in one.reason for one in found.values())


def test_one_value_says_nothing() -> None:
    """A key that was the same in all trials."""
    rows = [make_row(n, n / 20, values=one | {"optim.name": "sgd"}) for n, one in enumerate(_values(_FOUR, 20))]
    found = importances(make_board(rows), _FOUR)
    assert "it had one value in all 20 trials" == found["optim.name"].reason
    assert found["optim.lr"].value is not None


def test_keys_that_change_together_are_named() -> None:
    """The strengths of augmentation of `oct` follow one of them."""
    found = importances(oct_board(20, scheduler="none"), oct_space())
    followers = {"augment.brightness", "augment.contrast", "augment.crop_scale"}
    assert followers == set(found["augment.rotation_degrees"].tied)
    assert () == found["model.backbone"].tied == found["optim.lr"].tied
    assert 1 == len({found[key].value for key in (*followers, "augment.rotation_degrees")})


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["finished", "pruned", "failed", "stopped"]), st.sampled_from([0.1, 0.2, 0.9])),
        max_size=24,
    )
)
def test_any_search_has_shares_or_reasons(ends: list[tuple[str, float]]) -> None:
    """A share and a level of chance in 0..1, or a reason; the same each time; and no warning."""
    rows = [
        make_row(n, figure, status=end, values=values)
        for n, ((end, figure), values) in enumerate(zip(ends, _values(_EVERYTHING, len(ends)), strict=True))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = importances(make_board(rows), _EVERYTHING)
    assert set(_EVERYTHING.specs) == set(found)
    for one in found.values():
        assert (one.value is None) == (one.chance is None) == bool(one.reason)
        if one.value is not None and one.chance is not None:
            assert 0 <= one.value <= 1
            assert 0 <= one.chance <= 1
    assert found == importances(make_board(rows), _EVERYTHING)
