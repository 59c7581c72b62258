"""What a person watches while a search goes on: a table on a terminal, one line a trial where lines stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.terminal import LiveArea, live_area, printable
from tune_spaces.leaderboard import Leaderboard, TrialRow
from xdist_train.training.live import duration_text

__all__ = ["STATUS", "SearchView", "TaskView", "estimate_left", "leaderboard_table", "search_view"]

_SHOWN_BEST = 5
STATUS = {
    "finished": "finished",
    "pruned": "stopped early",
    "failed": "failed",
    "stopped": "stopped",
    "running": "at work",
}


class TaskView:
    """Draws tasks at work; what is said of them stays, the rest is overwritten."""

    def __init__(self, console: Console, area: LiveArea) -> None:
        self._console, self._area = console, area
        self._said: list[str] = []

    def say(self, text: str) -> None:
        """A line that stays, drawn with the next look; may be called from any thread."""
        self._said.append(text)

    def draw(self, content: Callable[[], RenderableType]) -> None:
        """Print what was said, and draw, where anybody sees it."""
        while self._said:
            self._console.print(printable(self._said.pop(0)), highlight=False, markup=False, soft_wrap=True)
        if self._area.is_drawn:
            self._area.draw(content())


class SearchView(TaskView):
    """Draws a search."""

    def show(self, board: Leaderboard, texts: Mapping[str, str], left_s: float | None, limit: str) -> None:
        """Draw what changed.

        Args:
            texts: where trials at work stand, by name.
            left_s: estimate of the time left.
            limit: what ends the search, in words.
        """
        self.draw(lambda: Group(Text(_summary(board, left_s, limit)), _table(board, texts)))


def _summary(board: Leaderboard, left_s: float | None, limit: str) -> str:
    counts = {status: sum(row.status == status for row in board.rows) for status in ("finished", "pruned", "failed")}
    best = board.row(board.best)
    text = (
        f"{board.name}: {sum(counts.values())} of {limit}  {counts['finished']} finished  "
        f"{counts['pruned']} stopped early  {counts['failed']} failed"
    )
    if best and best.figure is not None:
        text += f"  best {board.metric} {best.figure:.4f}"
    text += f"  {duration_text(board.seconds)} so far"
    return text if left_s is None else f"{text}, about {duration_text(left_s)} left"


def _table(board: Leaderboard, texts: Mapping[str, str]) -> Table:
    table = _empty_table(board.metric)
    for row in board.rows:
        if row.status == "running":
            table.add_row("", row.name, texts.get(row.name, "starting"), "", "")
    for name in sorted(texts.keys() - {row.name for row in board.rows}):
        table.add_row("", f"again: {name}", texts[name], "", "")
    for rank, row in enumerate([row for row in board.rows if row.figure is not None][:_SHOWN_BEST], start=1):
        table.add_row(*_cells(rank, row))
    return table


def leaderboard_table(board: Leaderboard, limit: int = 10) -> Table:
    """The best of a search, for a terminal."""
    table = _empty_table(board.metric)
    for rank, row in enumerate(board.rows[:limit], start=1):
        table.add_row(*_cells(rank, row))
    return table


def _empty_table(metric: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("trial", no_wrap=True)
    table.add_column("status")
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column(metric.replace("_", " "), justify="right")
    return table


def _cells(rank: int, row: TrialRow) -> tuple[str, str, str, str, str]:
    figure = "-" if row.figure is None else f"{row.figure:.4f}"
    if row.mean is not None and row.spread is not None:
        figure = f"{figure} ({row.mean:.4f} ± {row.spread:.4f}, {len(row.figures)} seeds)"
    return str(rank), printable(row.name), STATUS.get(row.status, row.status), str(row.epochs), figure


@contextmanager
def search_view(console: Console) -> Iterator[SearchView]:
    """A SearchView for the block."""
    with live_area(console, "connecting to Ray ...", refresh_per_second=2) as area:
        yield SearchView(console, area)


def estimate_left(board: Leaderboard, trials: int, hours: float) -> float | None:
    """Seconds left by the pace of trials that ended, and by the hours that a search may take."""
    ended = sum(row.status in ("finished", "pruned", "failed") for row in board.rows)
    limits = [hours * 3600 - board.seconds] if hours else []
    if trials and ended:
        limits.append(board.seconds / ended * (trials - ended))
    return max(0.0, min(limits)) if limits else None
