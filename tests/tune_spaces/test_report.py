"""The page of a search: true, whole, harmless, and one file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.tune_spaces.boards import make_board, make_row, oct_board, oct_space
from tests.tune_spaces.written import write_space
from tune_spaces.leaderboard import Leaderboard
from tune_spaces.report import search_report

_HOSTILE = '"><script>alert(1)</script><b onclick=x>'
_SPACE = write_space(
    "optim.name: {choice: [adamw, sgd]}\noptim.momentum: {by: optim.name, cases: {sgd: {uniform: [0, 0.9]}}}"
)
_VOID = {"meta", "br"}


class _Page(HTMLParser):
    """A page as its elements; fails where they do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def leaderboard(self) -> Iterator[dict[str, str]]:
        """Rows of the table with ranks, by heading."""
        start = next((n for n, row in enumerate(self.rows) if row[:2] == ["rank", "trial"]), len(self.rows))
        for row in self.rows[start + 1 :]:
            if len(row) != len(self.rows[start]):
                return
            yield dict(zip(self.rows[start], row, strict=True))


@cache
def _page() -> str:
    return search_report(oct_board(24, scheduler="median", num_repeats=2), oct_space())


def _empty(**fields: Any) -> Leaderboard:
    return make_board([], **fields)


def test_the_page_is_one_file_that_asks_for_nothing() -> None:
    """No address, no style, script, font or picture from elsewhere."""
    page = _Page(_page())
    assert set() == {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form", "img"}
    assert all("src" not in attributes for _, attributes in page.tags)
    assert [] == [
        url
        for url in re.findall(r"(?:href=\"|url\()\s*([^)\"]+)", _page())
        if url[:5] not in ("data:",) and url[0] != "#"
    ]
    assert "@import" not in _page()


def test_the_page_has_its_parts_in_order() -> None:
    """Verdict, best configuration with its command, leaderboard, figures, failures, settings."""
    heads = re.findall(r"<h([123])>(.*?)</h", _page())
    assert [
        ("1", "Search oct-search"),
        ("2", "Best configuration"),
        ("2", "Leaderboard"),
        ("2", "Figures"),
        ("3", "How the search went"),
        ("3", "Which values did well"),
        ("3", "Which keys decide"),
        ("3", "How trials learned"),
        ("3", "What it cost"),
        ("2", "Failed trials"),
        ("2", "Settings"),
    ] == heads
    assert "<pre>xdist-train train best.yaml</pre>" in _page()
    assert _page().index('class="verdict"') < _page().index("<h2>")
    assert 5 == _page().count("<figcaption>") == _page().count('<svg role="img" aria-label="')


def test_the_table_is_the_leaderboard() -> None:
    """A row a trial, in its order, with what it was and what came of it."""
    board = oct_board(24, scheduler="median", num_repeats=2)
    rows = list(_Page(_page()).leaderboard())
    assert [str(rank) for rank in range(1, 25)] == [row["rank"] for row in rows]
    assert [row.number for row in board.rows] == [int(row["trial"].split()[0]) for row in rows]
    best = board.rows[0]
    assert ["0000 (best, the recipe's own)"] == [row["trial"] for row in rows if "(" in row["trial"]]
    assert f"{best.figure:.4f}" == rows[0]["balanced_accuracy"]
    assert f"{best.mean:.4f} ± {best.spread:.4f} (3)" == rows[0]["mean ± standard deviation (seeds)"]
    assert f"{best.values['optim.lr']:.4g}" == rows[0]["optim.lr"]
    assert board.rows[-1].reason == rows[-1]["reason"]


def test_cells_sort_by_number_where_they_are_numbers() -> None:
    """The key of a cell is its whole number; a cell without a value has an empty one and stays last."""
    rows = [
        make_row(0, 0.5, train_seconds=7200.0, values={"optim.name": "sgd", "optim.momentum": 0.123456789}),
        make_row(1),
    ]
    page = search_report(make_board(rows), _SPACE)
    assert '<td data-key="7200.0">2 h 00 min</td>' in page
    assert '<td data-key="0.123456789">0.1235</td>' in page
    assert '<td data-key="">–</td>' in page


def test_the_best_configuration_stands_beside_the_recipe() -> None:
    """Each key with both values; a key that one of them has not is a dash."""
    rows = [make_row(0, 0.5, values={"optim.name": "adamw"})]
    rows += [make_row(1, 0.6, values={"optim.name": "sgd", "optim.momentum": 0.3})]
    table = _Page(search_report(make_board(rows, own="0000"), _SPACE)).rows
    assert [
        ["key", "value", "recipe's own value"],
        ["optim.name", "sgd", "adamw"],
        ["optim.momentum", "0.3", "–"],
    ] == table[:3]


def test_no_text_becomes_markup() -> None:
    """Names, reasons, values, settings, keys outside: all that a user or a library writes."""
    rows = [
        replace(make_row(0, 0.5, values={"optim.name": _HOSTILE}), name=_HOSTILE),
        make_row(1, reason=_HOSTILE),
        make_row(2, 0.4, status="pruned", reason=_HOSTILE),
    ]
    board = make_board(
        rows,
        name=_HOSTILE,
        recipe=_HOSTILE,
        space=_HOSTILE,
        metric=_HOSTILE,
        status=_HOSTILE,
        settings={_HOSTILE: [_HOSTILE]},
        outside={_HOSTILE: _HOSTILE},
        test={_HOSTILE: {"value": 0.5, "low": 0.4, "high": 0.6}},
    )
    space = write_space("model.weights: {choice: ['" + _HOSTILE + "']}\noptim.name: {choice: [adamw, sgd]}")
    page = search_report(board, space)
    tags = _Page(page).tags
    assert 1 == page.count("<script")
    assert [] == [tag for tag, attributes in tags if tag == "b" or "onclick" in attributes]
    assert "&lt;script&gt;alert(1)" in page


def test_what_steers_a_terminal_or_hides_is_shown() -> None:
    """A reason with control characters, as libraries colour them."""
    assert "\\x1b[31mred" in search_report(make_board([make_row(0, reason="\x1b[31mred")]), _SPACE)


@pytest.mark.parametrize(
    ("board", "sentences"),
    [
        (
            _empty(status="running"),
            ["still running", "No configuration was tried.", "No trial yet.", "No trial failed."],
        ),
        (_empty(status="stopped"), ["was stopped before its end", "No time was spent."]),
        (
            make_board([make_row(0, reason="no space left"), make_row(1, reason="")]),
            ["2 configurations were tried: 2 failed.", "2 trials failed.", "no space left", "no reason was recorded"],
        ),
        (
            make_board([make_row(0, 0.5, status="stopped", values={"optim.name": "sgd"})], status="stopped"),
            ["1 configuration was tried: 1 cut short by the end of the search.", "Learning curves"],
        ),
        (make_board([make_row(0, 0.5, status="running")], status="running"), ["1 still running", "Cost of the trials"]),
    ],
)
def test_a_search_without_a_finished_trial_has_a_true_page(board: Leaderboard, sentences: list[str]) -> None:
    """Nothing is best, and each part says why it is empty."""
    page = search_report(board, _SPACE)
    _Page(page)
    assert [] == [
        sentence for sentence in [*sentences, "No trial has finished, so there is none."] if sentence not in page
    ]
    assert "best.yaml" not in page
    assert len(board.rows) == len(list(_Page(page).leaderboard()))


def test_keys_without_a_number_say_why_once() -> None:
    """Keys with the same reason share a line."""
    page = search_report(make_board([make_row(0, 0.5, values={"optim.name": "sgd", "optim.momentum": 0.1})]), _SPACE)
    assert "<li>optim.name, optim.momentum: 1 of the trials with it came to an end;" in page


def test_settings_say_what_was_searched() -> None:
    """The search's own, and each key with its conditions."""
    rows = _Page(_page()).rows
    assert ["search.scheduler", "median"] in rows
    assert ["workers of a trial", "8, with a GPU each"] in rows
    assert ["optim.lr", "model.freeze is backbone", "0.0003..0.03, in the logarithm"] in rows
    assert ["sampler.alpha", "always", "0.0..1.0 in steps of 0.25"] in rows
