"""Names from files cannot steer a terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from cluster.terminal import FOLLOWED, drawn_text, live_area, printable


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    """Whatever goes in, what comes out has no control, format or surrogate character, and keeps its newlines."""
    shown = printable(text)
    assert text.count("\n") == shown.count("\n")
    assert all(char == "\n" or char.isprintable() or char.isspace() for char in shown)


def test_escapes_are_shown() -> None:
    """An escape sequence and a bidi mark become readable text; other letters stay."""
    assert printable("a\x1b[31mé\u202eb") == "a\\x1b[31mé\\u202eb"


def test_a_followed_job_writes_what_it_would_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """As marked lines that the follower draws and a plain reader can drop; nothing is left drawn at the end."""
    monkeypatch.setenv(FOLLOWED, "1")
    log = io.StringIO()
    console = Console(file=log)
    with live_area(console, "first") as area:
        area.draw(Text("epoch 1/2\nstep 3"))
        area.draw(Text("too soon after the last"))
        console.print("a line that stays")
    assert ["epoch 1/2\nstep 3", None, ""] == [drawn_text(line) for line in log.getvalue().rstrip().split("\n")]
    assert "a line that stays" in log.getvalue()


def test_without_a_terminal_or_follower_nothing_is_drawn() -> None:
    """A log that nobody follows holds lines that stay alone."""
    log = io.StringIO()
    with live_area(Console(file=log), "first") as area:
        area.draw(Text("epoch 1/2"))
        assert not area.is_drawn
    assert "" == log.getvalue()


@pytest.mark.parametrize("line", ["plain", "\x1enot JSON", '\x1e{"other": 1}', "\x1e[1]", ""])
def test_what_is_no_drawing_is_a_line(line: str) -> None:
    """A job may print what it likes."""
    assert drawn_text(line) is None
