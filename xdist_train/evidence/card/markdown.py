"""Markdown from texts that may come from anybody: what a name holds is shown, never markup. Knows nothing of runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cluster.terminal import printable

__all__ = ["bullets", "plain", "table"]

_SIGNS = re.compile(r"([\\`*_\[\]#|~$])")


def plain(words: str) -> str:
    """A text as one line that no reader of markdown or HTML takes for anything else."""
    line = printable(" ".join(words.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SIGNS.sub(r"\\\1", line)


def bullets(sentences: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {plain(sentence)}" for sentence in sentences)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells under their heads."""
    lines = [heads, ["---"] * len(heads)]
    return "\n".join([_row(map(plain, lines[0])), _row(lines[1]), *(_row(plain(cell) for cell in row) for row in rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
