"""Names from files cannot steer a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.terminal import printable


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    """Whatever goes in, what comes out has no control, format or surrogate character, and keeps its newlines."""
    shown = printable(text)
    assert text.count("\n") == shown.count("\n")
    assert all(char == "\n" or char.isprintable() or char.isspace() for char in shown)


def test_escapes_are_shown() -> None:
    """An escape sequence and a bidi mark become readable text; other letters stay."""
    assert printable("a\x1b[31mé\u202eb") == "a\\x1b[31mé\\u202eb"
