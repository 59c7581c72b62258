"""The page that says what reproduces each row of five published tutorials is true: tests and settings exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import field, make_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.config import load_config, parse_overrides
from dataloading.config import PackConfig
from xdist_train.config import recipe_names, resolve_config

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "tutorials.md"
_ROWS = {"A": 14, "B": 14, "C": 15, "D": 18, "E": 15}
_LEFT_OUT = re.compile(r"left out: \S")


class _Row(NamedTuple):
    """A row of a table: its key, the recipe of its section, what does it here, and what shows that."""

    key: str
    recipe: str
    here: str
    shown: str

    def quoted(self) -> list[str]:
        """What stands in backticks in the third column."""
        return re.findall(r"`([^`]+)`", self.here)

    def tests(self) -> list[str]:
        return re.findall(r"`(tests/[^`]+)`", self.shown)

    def settings(self) -> list[str]:
        return [words for words in self.quoted() if re.fullmatch(r"[a-z_]+\.[a-z_]+=\S+", words)]

    def commands(self) -> list[list[str]]:
        return [shlex.split(words)[1:] for words in self.quoted() if words.startswith("xdist-train ")]


def _rows() -> Iterator[_Row]:
    recipe = ""
    for line in _PAGE.read_text().splitlines():
        if line.startswith("## "):
            recipe = line.split("`")[1]
        cells = [cell.strip() for cell in line.strip("|").split(" |")]
        if re.fullmatch(r"\| [A-Z]\d+ \|.*", line):
            assert len(cells) == 4, line
            yield _Row(cells[0], recipe, cells[2], cells[3])


@cache
def _tests_of(path: str) -> frozenset[str]:
    """Names of the tests in a file."""
    tree = ast.parse((_ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def _is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    return (_ROOT / path).is_file() and name.startswith("test_") and name in _tests_of(path)


def test_every_row_is_there_once() -> None:
    """All 76, in their order."""
    expected = [f"{letter}{number}" for letter, count in _ROWS.items() for number in range(1, count + 1)]
    assert expected == [row.key for row in _rows()]
    assert 76 == len(expected)


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row.key)
def test_a_row_is_shown_or_says_why_not(row: _Row) -> None:
    """It names tests, all of which exist, or gives a reason; its recipe ships."""
    assert row.recipe in recipe_names()
    assert row.here
    assert row.tests() or _LEFT_OUT.search(row.here)
    assert [] == [test for test in row.tests() if not _is_there(test)]


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if any(row.recipe == name for row in _rows())])
def test_settings_are_those_of_the_recipe(recipe: str) -> None:
    """Each value in the third column is what the recipe already says; those of `pack` are ones that it takes."""
    settings = [words for row in _rows() if row.recipe == recipe for words in row.settings()]
    of_pack = [words for words in settings if words.startswith("pack.")]
    of_train = [words for words in settings if words not in of_pack]
    assert resolve_config(recipe, []) == resolve_config(recipe, of_train)
    _load_pack(of_pack)


def _load_pack(settings: list[str]) -> None:
    root = make_dataclass("Root", [("pack", PackConfig, field(default_factory=PackConfig))], frozen=True, kw_only=True)
    load_config(root, parse_overrides(settings))


def test_keys_alone_exist() -> None:
    """A setting that is named without a value is one of the schema."""
    known = resolve_config("demo", [])
    names = [words.split(".") for row in _rows() for words in row.quoted() if re.fullmatch(r"[a-z_]+\.[a-z_]+", words)]
    keys = [name for name in names if not name[1].startswith("json")]
    assert ["loader", "threads"] in keys
    assert [] == [key for key in keys if not hasattr(getattr(known, key[0]), key[1])]


def test_commands_exist() -> None:
    """Verbs are those of the command line, and what they are told is what they take."""
    verbs = {verb.name for verb in entry_points(group="xdist_train.verbs")}
    text = _PAGE.read_text()
    lines = [shlex.split(line)[1:] for line in re.findall(r"^xdist-train .*$", text, re.MULTILINE)]
    commands = [*lines, *(command for row in _rows() for command in row.commands())]
    assert len(commands) > 20
    assert {command[0] for command in commands} <= verbs
    for verb, *words in commands:
        settings = [word for word in words if re.match(r"[a-z_]+\.[a-z_]+=", word)]
        if verb == "pack":
            _load_pack(settings)
        else:
            resolve_config(words[0] if verb == "train" else "demo", settings)


def test_a_row_that_lies_is_found() -> None:
    """A test that does not exist, and a file that does not, are no evidence."""
    assert not _is_there("tests/test_tutorials.py::test_that_nobody_wrote")
    assert not _is_there("tests/test_nothing.py::test_every_row_is_there_once")
    assert _is_there("tests/test_tutorials.py::test_every_row_is_there_once")
