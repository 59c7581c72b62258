"""Figures of a search: well-formed, with their labels, and drawn from what they say that they are drawn from."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import matplotlib as mpl
import pytest

from tests.tune_spaces.boards import make_board, make_row, oct_board, oct_space
from tests.tune_spaces.written import write_space
from tune_spaces.figures import best_so_far, cost, importance_bars, learning_curves, parallel_coordinates
from tune_spaces.importance import Importance, importances
from tune_spaces.leaderboard import Leaderboard

_SVG = "{http://www.w3.org/2000/svg}"
_HOSTILE = '<script>alert("$x^2$")</script>'
_PLAIN = write_space(
    "optim.name: {choice: [adamw, sgd]}\nmodel.dropout: {by: optim.name, cases: {sgd: {uniform: [0, 0.5]}}}"
)
_DRAWN: dict[str, Callable[[Leaderboard], str | None]] = {
    "best": best_so_far,
    "values": lambda board: parallel_coordinates(board, oct_space()),
    "importance": lambda board: importance_bars(importances(board, oct_space()), board.metric),
    "curves": learning_curves,
    "cost": cost,
}
# Title and labels of axes.
_SAID = {
    "best": ["Best figure so far", "trial number", "worker time of the trials up to it, in their order (h)"],
    "values": ["Values of the trials", "keys of the space, each with an axis of its own; the last is the figure"],
    "importance": ["What decides about balanced_accuracy", "key"],
    "curves": ["Learning curves", "epochs done", "(higher is better, from 0 to 1)"],
    "cost": ["Cost of the trials", "trial number", "worker time (h)"],
}


@cache
def _board() -> Leaderboard:
    return oct_board(24, scheduler="median", num_repeats=2)


def _texts(svg: str | None) -> list[str]:
    """What a drawing says; fails where it is not well-formed."""
    assert svg is not None
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{_SVG}text")]


def _num_marks(svg: str | None, colour: str) -> int:
    """Marks of a colour in the drawing."""
    return sum(colour in node.get("style", "") for node in ET.fromstring(svg or "").iter(f"{_SVG}use"))


@pytest.mark.parametrize("name", _DRAWN)
def test_a_figure_says_what_it_shows(name: str) -> None:
    """Title, axes with units, in text; a name for readers that hear the page; nothing from elsewhere."""
    svg = _DRAWN[name](_board())
    assert set(_SAID[name]) <= set(_texts(svg))
    assert svg is not None
    assert svg.startswith('<svg role="img" aria-label="')
    assert [] == re.findall(r'(?:href|src)="(?!#|data:)', svg)


def test_ids_of_a_page_are_different() -> None:
    """Those of one drawing never name a part of another."""
    ids = [set(re.findall(r' id="([^"]+)"', draw(_board()) or "")) for draw in _DRAWN.values()]
    assert sum(map(len, ids)) == len(set[str]().union(*ids))
    assert all(ids)


def test_equal_searches_have_equal_figures_and_leave_no_trace() -> None:
    """Byte for byte; matplotlib's settings are as they were."""
    before = dict(mpl.rcParams)
    assert learning_curves(_board()) == learning_curves(_board())
    assert before == dict(mpl.rcParams)


@pytest.mark.parametrize("name", ["best", "values", "curves", "cost"])
def test_hostile_names_are_text(name: str) -> None:
    """In the metric and in values; `$` is no formula."""
    rows = [make_row(n, n / 3, values={"optim.name": _HOSTILE}) for n in range(3)]
    board = make_board(rows, metric=_HOSTILE)
    space = write_space("model.weights: {choice: ['" + _HOSTILE + "', none]}\noptim.name: {choice: [adamw, sgd]}")
    svg = parallel_coordinates(board, space) if name == "values" else _DRAWN[name](board)
    assert "<script" not in (svg or "")
    said = " ".join(_texts(svg))
    assert name == "cost" or "<script>alert" in said


@pytest.mark.parametrize("name", _DRAWN)
def test_without_trials_there_is_no_figure(name: str) -> None:
    """And with one that failed at once only its cost."""
    assert _DRAWN[name](make_board([])) is None
    assert (name == "cost") == bool(_DRAWN[name](make_board([make_row(0)])))


@pytest.mark.parametrize("status", ["running", "stopped", "pruned"])
def test_without_a_finished_trial_the_curves_are_there(status: Any) -> None:
    """Not so what compares whole trials."""
    board = make_board([make_row(n, 0.5, status=status) for n in range(3)])
    assert best_so_far(board) is None
    assert parallel_coordinates(board, _PLAIN) is None
    assert learning_curves(board) is not None


def test_one_trial_is_drawn() -> None:
    """Also where its only epoch has a figure that is not a number."""
    board = make_board([make_row(0, 0.5, values={"optim.name": "sgd", "model.dropout": 0.1})])
    assert all(_texts(draw(board)) for draw in (best_so_far, learning_curves, cost))
    assert "0.5" in _texts(parallel_coordinates(board, _PLAIN))
    assert learning_curves(make_board([make_row(0, 0.5, curve={1: float("nan")})])) is None


@pytest.mark.parametrize("end", ["finished", "pruned"])
def test_the_recipe_is_a_line_where_it_finished(end: Any) -> None:
    """Its figure of fewer epochs is no measure of others."""
    board = replace(make_board([make_row(0, 0.5, status=end), make_row(1, 0.6)]), own="0000")
    assert (end == "finished") == ("the recipe's own values" in _texts(best_so_far(board)))
    assert "the recipe's own values" in _texts(learning_curves(board))


@pytest.mark.parametrize(("direction", "best"), [("maximize", 1), ("minimize", 2)])
def test_the_best_so_far_follows_the_direction(direction: Any, best: int) -> None:
    """The line ends as high as the best trial's point."""
    board = make_board([make_row(n, figure) for n, figure in enumerate([0.5, 0.9, 0.1, 0.3])], direction=direction)
    drawing = ET.fromstring(best_so_far(board) or "")
    points = [float(node.get("y", "")) for node in drawing.iter(f"{_SVG}use") if "#0072b2" in node.get("style", "")]
    lines = [node.get("d", "") for node in drawing.iter(f"{_SVG}path") if "#d55e00" in node.get("style", "")]
    heights = [float(height) for height in re.findall(r"[ML] \S+ (\S+)", lines[0])]
    assert (points[0], points[best]) == (heights[0], heights[-1])


def test_a_key_that_is_not_there_leaves_a_gap() -> None:
    """The line breaks: a trial with three axes of which it lacks the middle one has no stroke."""
    whole = {"optim.name": "sgd", "model.dropout": 0.2}
    rows = [make_row(0, 0.9, values=whole), make_row(1, 0.5, values={"optim.name": "adamw"})]
    with_gap = parallel_coordinates(make_board(rows), _PLAIN)
    without = parallel_coordinates(make_board([rows[0], make_row(1, 0.5, values=whole)]), _PLAIN)
    assert with_gap is not None
    assert without is not None
    strokes = [len(re.findall(r"\bL \d", svg)) for svg in (with_gap, without)]
    assert strokes[0] == strokes[1] - 2


def test_a_stopped_trial_ends_in_a_cross() -> None:
    """A finished one does not."""
    stopped = make_board([make_row(0, 0.9), make_row(1, 0.4, status="pruned", curve={1: 0.3, 2: 0.4})])
    finished = make_board([make_row(0, 0.9), make_row(1, 0.4, curve={1: 0.3, 2: 0.4})])
    assert ["stopped early" in _texts(learning_curves(board)) for board in (stopped, finished)] == [True, False]
    assert (1, 0) == (_num_marks(learning_curves(stopped), "#56b4e9"), _num_marks(learning_curves(finished), "#56b4e9"))


def test_keys_that_nothing_tells_apart_share_a_bar() -> None:
    """And a key without a number has none."""
    found = {
        "a.b": Importance(value=0.4, chance=0.1, num_trials=20, tied=("c.d",)),
        "c.d": Importance(value=0.4, chance=0.1, num_trials=20, tied=("a.b",)),
        "e.f": Importance(value=0.1, chance=0.2, num_trials=12),
        "g.h": Importance(num_trials=3, reason="too few"),
    }
    said = _texts(importance_bars(found, "mcc"))
    assert ["0.40 (20 trials)", "0.10 (12 trials)"] == [text for text in said if "trials)" in text]
    assert {"a.b", "c.d", "e.f"} <= set(said)
    assert "g.h" not in said


def test_many_trials_stay_a_page() -> None:
    """200 trials in less than 1 MB of drawings."""
    board = oct_board(200, scheduler="median", seed=1)
    drawn = [best_so_far(board), parallel_coordinates(board, oct_space()), learning_curves(board), cost(board)]
    assert sum(len(svg or "") for svg in drawn) < 1_000_000
    assert all(drawn)
