"""What is shown on a terminal: text from files made safe, and what is drawn over and over while work goes on.

Where the work is a job on a cluster, what would be drawn goes into its log as marked lines, for the terminal of
whoever follows it (`cluster/jobs.py`).
"""

from __future__ import annotations

import io
import json
import os
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["FOLLOWED", "LiveArea", "drawn_text", "live_area", "printable", "progress_bar"]

FOLLOWED = "XDIST_FOLLOWED"
"""Set in the environment of a job whose log somebody draws from."""

_MARK = "\x1e"  # a JSON text sequence (RFC 7464): terminals show nothing for it
_MARKED_EVERY_S = 2.0
_WIDTH = 110

# Control, format (bidi marks), unassigned, private, surrogates, separators.
_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text with everything that could steer a terminal or hide itself written as an escape; newlines stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _HIDDEN else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


class LiveArea:
    """The lines at the end of a terminal that are drawn over and over."""

    def __init__(self, live: Any = None, marked: Any = None) -> None:
        self._live, self._marked = live, marked
        self._last, self._drawn_at = "", -_MARKED_EVERY_S

    @property
    def is_drawn(self) -> bool:
        """Whether anybody sees it."""
        return self._live is not None or self._marked is not None

    def draw(self, content: RenderableType) -> None:
        """Replace what is there; in a log at most every two seconds, and only what is new."""
        if self._live is not None:
            self._live.update(content)
        elif self._marked is not None and time.monotonic() - self._drawn_at >= _MARKED_EVERY_S:
            text = _plain(content)
            if text != self._last:
                self._mark(text)

    def clear(self) -> None:
        """Nothing is drawn any more."""
        if self._last:
            self._mark("")

    def _mark(self, text: str) -> None:
        self._last, self._drawn_at = text, time.monotonic()
        self._marked.write(f"{_MARK}{json.dumps({'live': text})}\n")
        self._marked.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The terminal is somebody else's for the block."""
        if self._live is None:
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()


@contextmanager
def live_area(console: Console, first: str, refresh_per_second: float = 4) -> Iterator[LiveArea]:
    """A LiveArea below what the console prints: on a terminal, or for one far away; else it is drawn nowhere."""
    from rich.live import Live
    from rich.text import Text

    if console.is_terminal:
        with Live(Text(first), console=console, transient=True, refresh_per_second=refresh_per_second) as live:
            yield LiveArea(live)
    else:
        area = LiveArea(marked=console.file if os.environ.get(FOLLOWED) else None)
        yield area
        area.clear()


def drawn_text(line: str) -> str | None:
    """What a line of a job's log wants drawn; None for a line that stays."""
    if not line.startswith(_MARK):
        return None
    try:
        return str(json.loads(line[1:])["live"])
    except (ValueError, LookupError, TypeError):
        return None


def _plain(content: RenderableType) -> str:
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=_WIDTH, color_system=None).print(content, soft_wrap=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that draws one bar for each thing that is counted; nothing without a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        with live_area(console, "") as area:
            yield lambda what, done, total: area.draw(Text(f"{what} {done}/{total}"))
        return
    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show
