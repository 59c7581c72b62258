"""Text that came from files, made safe for a terminal."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Control, format (bidi marks), unassigned, private, surrogates, separators.
_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text with everything that could steer a terminal or hide itself written as an escape; newlines stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _HIDDEN else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
