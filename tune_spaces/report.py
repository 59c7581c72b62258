"""The page of a search: one HTML file that needs nothing else. Pure; what it says is `verdict`'s and `figures`'.

Every text goes through `text`, so that no name, value or reason becomes markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tune_spaces.domains import Domain, Range, label
from tune_spaces.figures import best_so_far, cost, importance_bars, learning_curves, parallel_coordinates
from tune_spaces.importance import Importance, importances
from tune_spaces.leaderboard import Leaderboard, TrialRow
from tune_spaces.space import Conditions, Space, leaves
from tune_spaces.verdict import say_count, say_figure, say_seconds, verdict
from xdist_train.evidence.page import LONG, page, section, table, text

__all__ = ["search_report"]

_NOTHING = "–"
_TRIAL, _REASON = "trial", "reason"
_STATUS = {"pruned": "stopped early", "stopped": "cut short"}


def search_report(board: Leaderboard, space: Space) -> str:
    """The page: verdict, best configuration, leaderboard, figures, failures, settings."""
    about = f"Recipe {board.recipe} over the space {board.space}, {board.status}."
    parts = [
        f"<h1>Search {text(board.name)}</h1>\n<p>{text(about)}</p>",
        f'<p class="verdict">{text(" ".join(verdict(board)))}</p>',
        section("Best configuration", *_best_configuration(board, space)),
        section("Leaderboard", *_leaderboard(board, space)),
        section("Figures", *_figures(board, space)),
        section("Failed trials", *_failures(board)),
        section("Settings", *_settings(board, space)),
    ]
    return page(f"Search {board.name}", parts)


def _best_configuration(board: Leaderboard, space: Space) -> Iterator[str]:
    best, own = board.row(board.best), board.row(board.own)
    if best is None:
        yield "<p>No trial has finished, so there is none.</p>"
        return
    heads = ["key", "value", *(["recipe's own value"] if own else [])]
    rows = [[key, *(_value(row, key) for row in (best, own) if row)] for key in space.specs]
    yield table("What the best trial lays over the recipe.", heads, rows)
    yield "<p>To train it again, from the folder of the search:</p>\n<pre>xdist-train train best.yaml</pre>"


def _leaderboard(board: Leaderboard, space: Space) -> Iterator[str]:
    if not board.rows:
        yield "<p>No trial yet.</p>"
        return
    columns = _columns(board, space)
    heads = "".join(f'<th scope="col"><button type="button">{text(name)}</button></th>' for name in columns)
    body = "\n".join(_leaderboard_row(row, board, columns) for row in board.rows)
    yield (
        '<div class="scroll"><table class="sortable">\n'
        "<caption>Best first: finished trials, then those that were stopped early, whose figures are of fewer epochs, "
        "then the rest. A click on a heading sorts by it.</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _columns(board: Leaderboard, space: Space) -> dict[str, Callable[[TrialRow], _Cell]]:
    """By heading, the cell of a trial."""
    ranks = {row.name: rank for rank, row in enumerate(board.rows, 1)}
    keys: dict[str, Callable[[TrialRow], _Cell]] = {key: partial(_cell_of_key, key) for key in space.specs}
    return {
        "rank": lambda row: _Cell.of(ranks[row.name]),
        _TRIAL: lambda row: _Cell(_name(row, board), str(row.number)),
        "status": lambda row: _Cell.of(_STATUS.get(row.status, row.status)),
        board.metric: lambda row: _Cell.of(row.figure, say_figure),
        "of epoch": lambda row: _Cell.of(row.selected_epoch),
        "epochs": lambda row: _Cell.of(row.epochs),
        "mean ± standard deviation (seeds)": lambda row: _Cell.of(row.mean, lambda _: _seeds(row)),
        **keys,
        "training time": lambda row: _Cell.of(row.train_seconds, say_seconds),
        "worker time": lambda row: _Cell.of(row.worker_seconds, say_seconds),
        _REASON: lambda row: _Cell.of(row.reason or None),
    }


@dataclass(frozen=True)
class _Cell:
    """What is shown, and what is sorted by; empty is last."""

    text: str
    key: str

    @classmethod
    def of(cls, value: Any, say: Callable[[Any], str] = str) -> _Cell:
        return cls(_NOTHING, "") if value is None else cls(say(value), str(value))


def _leaderboard_row(row: TrialRow, board: Leaderboard, columns: Mapping[str, Callable[[TrialRow], _Cell]]) -> str:
    best = ' class="best"' if row.name == board.best else ""
    cells = ((name, column(row)) for name, column in columns.items())
    return f"<tr{best}>{''.join(_leaderboard_cell(name, cell) for name, cell in cells)}</tr>"


def _leaderboard_cell(name: str, cell: _Cell) -> str:
    key, shown = text(cell.key), text(cell.text)
    if name == _TRIAL:
        return f'<th scope="row" data-key="{key}">{shown}</th>'
    return f'<td{LONG if name == _REASON else ""} data-key="{key}">{shown}</td>'


def _cell_of_key(key: str, row: TrialRow) -> _Cell:
    if key not in row.values:
        return _Cell.of(None)
    value = row.values[key]
    return _Cell(f"{value:.4g}" if isinstance(value, float) else label(value), label(value))


def _name(row: TrialRow, board: Leaderboard) -> str:
    marks = [mark for mark, name in (("best", board.best), ("the recipe's own", board.own)) if name == row.name]
    return row.name + (f" ({', '.join(marks)})" if marks else "")


def _seeds(row: TrialRow) -> str:
    assert row.mean is not None
    spread = _NOTHING if row.spread is None else say_figure(row.spread)
    return f"{say_figure(row.mean)} ± {spread} ({len(row.figures)})"


def _figures(board: Leaderboard, space: Space) -> Iterator[str]:
    found = importances(board, space)
    unfinished = "No trial has finished, so there is nothing to draw."
    yield _figure(
        "How the search went",
        best_so_far(board),
        "A step is a trial that beat all before it; a long level end is a search that has found nothing better for "
        "long. Only finished trials are shown, since the figures of others are of fewer epochs.",
        unfinished,
    )
    yield _figure(
        "Which values did well",
        parallel_coordinates(board, space),
        "Follow a line from left to right: it is one trial. Where dark lines meet on an axis and pale ones do not, "
        "that value did well. A gap is a key that the trial does not have.",
        unfinished,
    )
    yield _figure(
        "Which keys decide",
        importance_bars(found, board.metric),
        "A bar that ends before its mark may be nothing but chance, and with many keys one in twenty passes its mark "
        "by chance too. Shares are of the values that were tried and do not add up to 1; keys in one row always "
        "changed together.",
        "No key has a number.",
    )
    yield from _without_number(found)
    yield _figure(
        "How trials learned",
        learning_curves(board),
        "A cross is where a trial ended before its last epoch. A curve that still climbs at its end asks for more "
        "epochs.",
        "No trial has come to the end of an epoch.",
    )
    yield _figure(
        "What it cost",
        cost(board),
        "Worker time is that of all workers of a trial together, their start with it; the search took "
        f"{say_seconds(board.worker_seconds)} of it.",
        "No time was spent.",
    )


def _figure(title: str, svg: str | None, reading: str, otherwise: str) -> str:
    """A figure with how to read it, or why there is none."""
    if svg is None:
        return f"<h3>{text(title)}</h3>\n<p>{text(otherwise)}</p>"
    return f"<h3>{text(title)}</h3>\n<figure>\n<figcaption>{text(reading)}</figcaption>\n{svg}\n</figure>"


def _without_number(found: Mapping[str, Importance]) -> Iterator[str]:
    keys: dict[str, list[str]] = {}
    for key, one in found.items():
        keys.setdefault(one.reason, []).append(key)
    lines = [f"{', '.join(named)}: {reason}." for reason, named in keys.items() if reason]
    items = [f"<li>{text(line)}</li>" for line in lines]
    if items:
        yield f"<p>Without a number:</p>\n<ul>\n{''.join(items)}\n</ul>"


def _failures(board: Leaderboard) -> Iterator[str]:
    failed = [
        [_name(row, board), row.reason or "no reason was recorded"] for row in board.rows if row.status == "failed"
    ]
    if not failed:
        yield "<p>No trial failed.</p>"
        return
    yield table(f"{say_count(len(failed), 'trial')} failed.", ["trial", _REASON], failed)


def _settings(board: Leaderboard, space: Space) -> Iterator[str]:
    facts = {
        "recipe": board.recipe,
        "space": board.space,
        "metric": f"{board.metric} on val, {board.direction}",
        **{f"search.{name}": label(value) for name, value in board.settings.items()},
        "workers of a trial": f"{board.workers}, {'with' if board.use_gpu else 'without'} a GPU each",
        "time of the search": say_seconds(board.seconds),
        "worker time": say_seconds(board.worker_seconds),
    }
    yield table("The search.", ["setting", "value"], [[name, value] for name, value in facts.items()])
    ranges = [
        [key, _conditions(path), _domain(leaf.domain)]
        for key, spec in space.specs.items()
        for path, leaf in leaves(spec)
    ]
    yield table("What each key may take.", ["key", "where", "values"], ranges)


def _conditions(path: Conditions) -> str:
    cases = [f"{condition.by} is {'any other' if case is None else case}" for condition, case in path]
    return ", ".join(cases) or "always"


def _domain(domain: Domain) -> str:
    return f"{domain}, in the logarithm" if isinstance(domain, Range) and domain.log else str(domain)


def _value(row: TrialRow, key: str) -> str:
    return label(row.values[key]) if key in row.values else _NOTHING
