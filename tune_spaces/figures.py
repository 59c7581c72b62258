"""The figures of a search's page, as inline SVG. Pure; no pyplot.

Text stays text (selectable, read aloud, in the reader's font), and is never read as mathematics. Colours are those of
Okabe and Ito (2008) and the map cividis (Nuñez et al. 2018), which colour-blind readers tell apart. A colour means the
same in all figures: orange-red the best trial, black the recipe's own, the others by how they ended.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cluster.terminal import printable
from tune_spaces.axes import place, ticks, union
from tune_spaces.domains import Choice, Domain, Range
from tune_spaces.importance import Importance
from tune_spaces.leaderboard import Leaderboard, TrialRow
from tune_spaces.space import Space
from xdist_train.evidence.drawing import drawing_style, svg_element

__all__ = ["best_so_far", "cost", "importance_bars", "learning_curves", "parallel_coordinates"]

_WIDTH_IN, _HEIGHT_IN = 10.0, 4.2
_BEST, _PALE = "#d55e00", "#c6dbe8"
_BEST_LINE: dict[str, Any] = {"color": _BEST, "lw": 2.5, "label": "the best trial"}
_OWN_LINE: dict[str, Any] = {"color": "#000000", "lw": 1.2, "ls": "--", "label": "the recipe's own values"}
# How a trial ended: its colour and its name.
_ENDS = {
    "finished": ("#0072b2", "finished"),
    "pruned": ("#56b4e9", "stopped early"),
    "failed": ("#cc79a7", "failed"),
    "stopped": ("#999999", "cut short by the search's end"),
    "running": ("#009e73", "still running"),
}
_REPEATS: dict[str, Any] = {"facecolor": "#ffffff", "edgecolor": "#444444", "label": "the same with other seeds"}
# Trials that an axis has room for at least, so that a bar stays a bar.
_LEAST_ROOM = 10
_LONGEST_TEXT = 16
# Of choices that lie on one place of an axis, so that many lines stay many; a share of the axis.
_SPREAD = 0.04
# Of the finished trials, those that are worse all have the palest colour: one that learned nothing takes no shades.
_PALEST = 0.1
_CHANCE: dict[str, Any] = {"color": "#000000", "marker": "|", "ls": "", "ms": 16, "mew": 2}
_UNITS = {"loss": "", "mcc": ", from -1 to 1"}


def best_so_far(board: Leaderboard) -> str | None:
    """The best figure of a finished trial up to each, by number and by worker time; None where none finished."""
    rows = _by_number(board)
    figures = {row.number: row.figure for row in rows if row.status == "finished" and row.figure is not None}
    if not figures:
        return None
    divisor, unit = _unit_of(sum(row.worker_seconds for row in rows))
    spent = itertools.accumulate(row.worker_seconds / divisor for row in rows)
    with drawing_style():
        figure = _figure(_HEIGHT_IN)
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_best_so_far(left, board, figures, {row.number: float(row.number) for row in rows})
        _draw_best_so_far(right, board, figures, dict(zip((row.number for row in rows), spent, strict=True)))
        figure.suptitle("Best figure so far")
        left.set(xlabel="trial number", ylabel=_metric(board))
        _count_trials(left, rows)
        right.set(xlabel=f"worker time of the trials up to it, in their order ({unit})")
        right.set_xlim(left=0)
        marks = [Line2D([], [], color=_BEST, lw=2, label="best so far"), *_lines(rows, "finished", marker="o", ls="")]
        own = [Line2D([], [], **_OWN_LINE)] if _own_figure(board) is not None else []
        _legend(figure, [*marks, *own])
        return svg_element(figure, "best", "Best figure so far, by trial number and by worker time.")


def _draw_best_so_far(axes: Axes, board: Leaderboard, figures: Mapping[int, float], at: Mapping[int, float]) -> None:
    numbers = list(figures)
    axes.plot([at[number] for number in numbers], list(figures.values()), "o", ms=4, color=_ENDS["finished"][0])
    best = list(itertools.accumulate(figures.values(), max if board.direction == "maximize" else min))
    # The line goes on to the last trial, which may not have finished.
    axes.step(
        [*(at[number] for number in numbers), max(at.values())], [*best, best[-1]], where="post", color=_BEST, lw=2
    )
    own = _own_figure(board)
    if own is not None:
        axes.axhline(own, **_OWN_LINE)


def _own_figure(board: Leaderboard) -> float | None:
    """Of the recipe's own values, if their trial finished."""
    own = board.row(board.own)
    return own.figure if own is not None and own.status == "finished" else None


def parallel_coordinates(board: Leaderboard, space: Space) -> str | None:
    """A line a trial through its values, an axis a key; None where no trial finished.

    A key that a trial has not leaves a gap in its line. Trials that were stopped early have no place on the axis of
    figures: theirs is that of fewer epochs.
    """
    rows = [row for row in reversed(board.rows) if row.status in ("finished", "pruned")]
    figures = [row.figure for row in rows if row.status == "finished" and row.figure is not None]
    if not figures:
        return None
    domains: dict[str, Domain] = {key: union(spec) for key, spec in space.specs.items()}
    domains[board.metric] = Range(low=min(figures), high=max(figures))
    shades = _shades(figures, board)
    with drawing_style():
        figure = _figure(5.2, max(_WIDTH_IN, 0.95 * len(domains)))
        axes = figure.subplots()
        axes.set_title("Values of the trials", pad=44)
        for row in rows:
            axes.plot(_heights(row, domains), marker="o", ms=2.5, **_look(row, board, shades))
        for x, (name, domain) in enumerate(domains.items()):
            _draw_axis(axes, x, name, domain)
        axes.set(xlim=(-0.1, len(domains) - 0.5), ylim=(-0.05, 1.05), xticks=[], yticks=[])
        axes.set(xlabel="keys of the space, each with an axis of its own; the last is the figure")
        axes.spines[:].set_visible(False)
        if len(set(figures)) > 1:
            extend = "min" if board.direction == "maximize" else "max"
            figure.colorbar(shades, ax=axes, label=_metric(board), extend=extend, pad=0.01)
        _legend(figure, [*_lines(rows, "pruned"), Line2D([], [], **_BEST_LINE)])
        return svg_element(figure, "values", "Values of the trials: a line a trial, an axis a key, coloured by figure.")


def _shades(figures: Sequence[float], board: Leaderboard) -> ScalarMappable:
    """The darker the better, so that the best stand out on white."""
    higher = board.direction == "maximize"
    palest = float(np.quantile(figures, _PALEST if higher else 1 - _PALEST))
    ends = (palest, max(figures)) if higher else (min(figures), palest)
    return ScalarMappable(Normalize(*ends), "cividis_r" if higher else "cividis")


def _heights(row: TrialRow, domains: Mapping[str, Domain]) -> list[float]:
    """Where a trial's line crosses each axis, the last that of figures; nan where it has no value."""
    *keys, metric = domains
    values = {key: row.values[key] for key in keys if key in row.values}
    if row.status == "finished":
        values[metric] = row.figure
    spread = _SPREAD * ((row.number * 0.618) % 1 - 0.5)
    places = {key: place(domains[key], value) for key, value in values.items()}
    return [
        math.nan if at is None else at + (spread if isinstance(domain, Choice) else 0.0)
        for at, domain in ((places.get(key), domain) for key, domain in domains.items())
    ]


def _look(row: TrialRow, board: Leaderboard, shades: ScalarMappable) -> dict[str, Any]:
    if row.name == board.best:
        return _BEST_LINE | {"zorder": 3}
    if row.status == "finished":
        return {"color": shades.to_rgba(np.array(row.figure)), "lw": 1.2, "alpha": 0.9, "zorder": 2}
    return {"color": _ENDS["pruned"][0], "lw": 0.7, "alpha": 0.25, "zorder": 1}


def _draw_axis(axes: Axes, x: int, name: str, domain: Domain) -> None:
    axes.plot([x, x], [0, 1], color="#444444", lw=0.8, zorder=4)
    axes.text(x, 1.08, _in_lines(name), ha="center", va="bottom", fontsize=8, weight="bold")
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for at, text in ticks(domain):
        axes.plot([x, x + 0.04], [at, at], color="#444444", lw=0.8, zorder=4)
        axes.text(x + 0.06, at, _shown(text), fontsize=7, va="center", zorder=5, bbox=box)


def importance_bars(importances: Mapping[str, Importance], metric: str) -> str | None:
    """A bar a key with a number, and what chance reaches; keys that nothing tells apart share one. None without any."""
    groups = [(key, one) for key, one in _heads(importances) if one.value is not None and one.chance is not None]
    if not groups:
        return None
    with drawing_style():
        figure = _figure(1.6 + 0.42 * len(groups))
        axes = figure.subplots()
        names = ["\n".join(map(_shown_key, (key, *one.tied))) for key, one in groups]
        colours = [_ENDS["finished"][0] if one.is_clear else _PALE for _, one in groups]
        ys = range(len(groups))
        values, chances = [one.value or 0.0 for _, one in groups], [one.chance or 0.0 for _, one in groups]
        ends = [max(pair) for pair in zip(values, chances, strict=True)]
        axes.barh(ys, values, 0.6, color=colours)
        axes.plot(chances, ys, **_CHANCE)
        for y, (_, one) in enumerate(groups):
            text = f"{values[y]:.2f} ({one.num_trials} trials)"
            axes.annotate(text, (ends[y], y), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(ys, names, fontsize=8)
        axes.set(xlim=(0, 1.25 * max(ends)), ylim=(len(groups) - 0.5, -0.5), ylabel="key")
        axes.set_xlabel("share of being among the best trials that the key explains alone, 0 to 1")
        axes.set_title(f"What decides about {_shown(metric, 40)}")
        clear, unclear = (
            Patch(color=_ENDS["finished"][0], label="more than chance"),
            Patch(color=_PALE, label="may be chance"),
        )
        _legend(figure, [clear, unclear, Line2D([], [], label="what chance stays under 19 times in 20", **_CHANCE)])
        return svg_element(figure, "importance", f"What each key explains of {metric}.")


def _heads(importances: Mapping[str, Importance]) -> Iterator[tuple[str, Importance]]:
    """The first key of each group that nothing tells apart."""
    seen: set[str] = set()
    for key, one in importances.items():
        if key not in seen:
            yield key, one
        seen |= {key, *one.tied}


def learning_curves(board: Leaderboard) -> str | None:
    """The metric by epoch, a curve a trial; None where there is no point of a curve."""
    rows = [row for row in reversed(board.rows) if _points(row)]
    if not rows:
        return None
    with drawing_style():
        figure = _figure(_HEIGHT_IN)
        axes = figure.subplots()
        for row in rows:
            _draw_curve(axes, row, board)
        axes.set(xlabel="epochs done", ylabel=_metric(board), title="Learning curves")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        names = {row.name for row in rows}
        special = [
            Line2D([], [], **look) for name, look in ((board.best, _BEST_LINE), (board.own, _OWN_LINE)) if name in names
        ]
        _legend(figure, [*_lines(rows, *_ENDS), *special])
        return svg_element(figure, "curves", "Learning curves of all trials.")


def _draw_curve(axes: Axes, row: TrialRow, board: Leaderboard) -> None:
    xs, ys = zip(*_points(row), strict=True)
    colour, is_whole = _ENDS[row.status][0], row.status == "finished"
    axes.plot(xs, ys, color=colour, lw=1, alpha=0.7 if is_whole else 0.5, marker="o" if len(xs) == 1 else "", ms=3)
    if not is_whole:
        axes.plot(xs[-1], ys[-1], "x", color=colour, ms=6)
    if row.name == board.best:
        axes.plot(xs, ys, zorder=4, **_BEST_LINE)
    if row.name == board.own:
        axes.plot(xs, ys, zorder=5, **_OWN_LINE)


def cost(board: Leaderboard) -> str | None:
    """Worker time of each trial, its repetitions on top; None where no time was spent."""
    rows = _by_number(board)
    if board.worker_seconds <= 0:
        return None
    divisor, unit = _unit_of(max(_worker_seconds(row) for row in rows))
    with drawing_style():
        figure = _figure(_HEIGHT_IN)
        axes = figure.subplots()
        axes.bar(
            [row.number for row in rows],
            [row.worker_seconds / divisor for row in rows],
            color=[_ENDS[row.status][0] for row in rows],
        )
        repeated = [row for row in rows if row.repeats]
        axes.bar(
            [row.number for row in repeated],
            [(_worker_seconds(row) - row.worker_seconds) / divisor for row in repeated],
            bottom=[row.worker_seconds / divisor for row in repeated],
            **_REPEATS,
        )
        axes.set(xlabel="trial number", ylabel=f"worker time ({unit})", title="Cost of the trials")
        _count_trials(axes, rows)
        ends = [Patch(color=colour, label=name) for colour, name in _present(rows, *_ENDS)]
        _legend(figure, [*ends, *([Patch(**_REPEATS)] if repeated else [])])
        return svg_element(figure, "cost", "Worker time of each trial.")


def _by_number(board: Leaderboard) -> list[TrialRow]:
    return sorted(board.rows, key=lambda row: row.number)


def _count_trials(axes: Axes, rows: Sequence[TrialRow]) -> None:
    axes.set_xlim(-0.8, max(rows[-1].number, _LEAST_ROOM) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _worker_seconds(row: TrialRow) -> float:
    return row.worker_seconds + sum(repeat.worker_seconds for repeat in row.repeats)


def _points(row: TrialRow) -> list[tuple[int, float]]:
    return [(epochs, figure) for epochs, figure in sorted(row.curve.items()) if math.isfinite(figure)]


def _unit_of(seconds: float) -> tuple[float, str]:
    """What to divide seconds by for readable numbers, and the unit that this gives."""
    return (1.0, "s") if seconds < 300 else (60.0, "min") if seconds < 7200 else (3600.0, "h")


def _metric(board: Leaderboard) -> str:
    """The metric as a label of an axis."""
    better = "higher" if board.direction == "maximize" else "lower"
    return f"{_shown(board.metric, 40)} on val\n({better} is better{_UNITS.get(board.metric, ', from 0 to 1')})"


def _shown(text: str, longest: int = _LONGEST_TEXT) -> str:
    text = printable(text).replace("\n", " ")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _shown_key(key: str) -> str:
    return _shown(key, 40)


def _in_lines(key: str) -> str:
    """A key in short lines."""
    return _shown_key(key).replace(".", ".\n").replace("_", "_\n")


def _present(rows: Sequence[TrialRow], *ends: str) -> list[tuple[str, str]]:
    """Colours and names of the ends that these trials came to."""
    return [_ENDS[end] for end in ends if any(row.status == end for row in rows)]


def _lines(rows: Sequence[TrialRow], *ends: str, **look: Any) -> list[Line2D]:
    return [Line2D([], [], color=colour, label=name, **look) for colour, name in _present(rows, *ends)]


def _legend(figure: Figure, marks: Sequence[Artist]) -> None:
    figure.legend(handles=list(marks), loc="outside lower center", ncols=4)


def _figure(height_in: float, width_in: float = _WIDTH_IN) -> Figure:
    return Figure(figsize=(width_in, height_in), layout="constrained")
