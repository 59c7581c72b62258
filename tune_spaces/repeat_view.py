"""What a person sees of a repetition: parts at work, and in the end the figures side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.terminal import live_area, printable
from tune_spaces.leaderboard import TrialRow
from tune_spaces.live import STATUS, TaskView
from tune_spaces.parts import Part
from xdist_train.evidence.tables import TITLES, figure_text

__all__ = ["RepeatView", "parts_table", "pooled_table", "repeat_view"]

Rows = Sequence[tuple[Part, TrialRow]]


class RepeatView(TaskView):
    """Draws a repetition."""

    def begin(self, rows: Rows, concurrency: int) -> None:
        """Say what is about to be done."""
        done = sum(row.status == "finished" for _, row in rows)
        before = f", of which {done} have finished before" if done else ""
        self.say(f"{len(rows)} parts{before}; {concurrency} at a time")

    def show(self, rows: Rows, texts: Mapping[str, str]) -> None:
        """Draw what changed.

        Args:
            texts: where parts at work stand, by name.
        """
        self.draw(lambda: _progress(rows, texts))


@contextmanager
def repeat_view(console: Console) -> Iterator[RepeatView]:
    """A RepeatView for the block."""
    with live_area(console, "connecting to Ray ...", refresh_per_second=2) as area:
        yield RepeatView(console, area)


def _progress(rows: Rows, texts: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("status")
    for part, row in rows:
        waits = row.status == "stopped"
        said = "waits" if waits else texts.get(part.name, "starting") if row.status == "running" else row.status
        table.add_row(part.name, printable(said))
    return table


def parts_table(values: Mapping[str, Any]) -> Table:
    """One row a part.

    Args:
        values: `repeat.json`.
    """
    metric = values["metric"]
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "status", "epoch", f"{TITLES[metric]} on test"):
        table.add_column(heading, no_wrap=heading == "part", justify="right" if heading == "epoch" else "left")
    for part in values["parts"]:
        figure = part["figures"] and part["figures"][metric]
        reason = f" ({printable(part['reason'])})" if part["reason"] else ""
        table.add_row(
            part["name"],
            Text(STATUS[part["status"]] + reason),
            str(part["selected_epoch"] or "-"),
            "-" if figure is None else f"{figure:.4f}",
        )
    return table


def pooled_table(values: Mapping[str, Any]) -> Table:
    """Schemes side by side: pooled figures with their intervals, and mean ± standard deviation over seeds and folds.

    Args:
        values: `repeat.json`.
    """
    found = [scheme for scheme in values["schemes"] if scheme["pooled"]]
    table = Table(title=Text("test, pooled: 95 % intervals over patients"))
    table.caption = "single seeds, folds: mean ± standard deviation"
    table.add_column("figure")
    for scheme in found:
        head = f"{scheme['description']}\n{scheme['n_images']} images, {scheme['n_patients']} patients"
        table.add_column(Text(head), justify="right")
    for name, title in TITLES.items():
        table.add_section()
        table.add_row(title, *(figure_text(scheme["pooled"][name]) for scheme in found))
        for what in ("seeds", "folds"):
            spreads = [scheme[f"over_{what}"] and scheme[f"over_{what}"][name] for scheme in found]
            if any(spread and spread["n"] > 1 for spread in spreads):
                table.add_row(f"  single {what}", *map(spread_text, spreads))
    return table


def spread_text(spread: Mapping[str, Any] | None) -> str:
    """Mean ± standard deviation, of how many; empty where there are not two."""
    if not spread or spread["n"] < 2:
        return ""
    return f"{spread['mean']:.3f} ± {spread['standard_deviation']:.3f} of {spread['n']}"
