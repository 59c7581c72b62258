"""What came of a search, in plain sentences. Pure; knows no page and no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tune_spaces.leaderboard import Leaderboard, TrialRow

__all__ = ["better_by", "say_count", "say_figure", "say_seconds", "verdict"]

# Of the search, where it is not "finished".
_OPENINGS = {
    "running": "The search is still running: this is how far it has come.",
    "stopped": "The search was stopped before its end; it can go on.",
    "failed": "The search failed.",
}
# Of trials, in the order in which they are said.
_ENDS = {
    "finished": "finished",
    "pruned": "stopped early",
    "failed": "failed",
    "stopped": "cut short by the end of the search",
    "running": "still running",
}
_UNKNOWN = "So whether the best is better than the recipe is not known."
# Said in place of a metric that `evaluation/test.json` has not.
_INSTEAD = "balanced_accuracy"


def verdict(board: Leaderboard) -> list[str]:
    """Sentences: what was tried, what was chosen, what that is worth, and what it does not say."""
    sentences = list(_trials(board))
    chosen = board.row(board.best)
    if chosen is None or chosen.figure is None:
        return [*sentences, *_nothing_chosen(board)]
    return [
        *sentences,
        *_choice(board, chosen, chosen.figure),
        *_against_own(board, chosen, chosen.figure),
        *_seeds(board, chosen),
        *_caution(board),
        _on_test(board),
    ]


def say_figure(figure: float) -> str:
    """A figure with four decimals, very small ones with three digits."""
    return f"{figure:.3g}" if 0 < abs(figure) < 1e-3 else f"{figure:.4f}"


def say_count(number: int, noun: str) -> str:
    """A number with its noun in the right form."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def say_seconds(seconds: float) -> str:
    """A time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def better_by(board: Leaderboard, figure: float, other: float) -> float:
    """How much better a figure is than another; negative if it is worse."""
    return figure - other if board.direction == "maximize" else other - figure


def _trials(board: Leaderboard) -> Iterator[str]:
    if board.status in _OPENINGS:
        yield _OPENINGS[board.status]
    if not board.rows:
        yield "No configuration was tried."
        return
    counts = {end: sum(row.status == status for row in board.rows) for status, end in _ENDS.items()}
    ends = [f"{number} {end}" for end, number in counts.items() if number]
    were = "was" if len(board.rows) == 1 else "were"
    yield f"{say_count(len(board.rows), 'configuration')} {were} tried: {_joined(ends)}."
    better = "higher" if board.direction == "maximize" else "lower"
    yield (
        f"They are compared by {board.metric} on the validation patients only ({better} is better); "
        "no test patient had a part in the choice."
    )


def _nothing_chosen(board: Leaderboard) -> Iterator[str]:
    if board.rows:
        yield "None of them finished with a figure, so there is no best configuration yet."


def _choice(board: Leaderboard, chosen: TrialRow, figure: float) -> Iterator[str]:
    epoch = "" if chosen.selected_epoch is None else f" (epoch {chosen.selected_epoch})"
    yield f"The best is trial {chosen.name} with {board.metric} {say_figure(figure)}{epoch}."


def _against_own(board: Leaderboard, chosen: TrialRow, figure: float) -> Iterator[str]:
    own = board.row(board.own)
    if board.outside:
        keys = "; ".join(f"{key}: {reason}" for key, reason in board.outside.items())
        yield f"The recipe's own values lie outside of the space and were not tried ({keys}). {_UNKNOWN}"
    elif own is None:
        yield f"The recipe's own values were not tried. {_UNKNOWN}"
    elif own.name == chosen.name:
        is_alone = sum(row.status == "finished" for row in board.rows) == 1
        yield "It has the recipe's own values: " + (
            "no other configuration finished." if is_alone else "no other that finished ranks above it."
        )
    elif own.status != "finished" or own.figure is None:
        yield f"The trial with the recipe's own values did not finish ({_ENDS[own.status]}). {_UNKNOWN}"
    else:
        yield from _lead_over_own(board, chosen, own, figure, own.figure)


def _lead_over_own(
    board: Leaderboard, chosen: TrialRow, own: TrialRow, figure: float, own_figure: float
) -> Iterator[str]:
    """Like with like: means over seeds where both have them, else both with the seed of the search."""
    seeds = ""
    if chosen.mean is not None and own.mean is not None:
        figure, own_figure, seeds = chosen.mean, own.mean, ", means over seeds"
    lead, theirs = better_by(board, figure, own_figure), f"(trial {own.name}, {say_figure(own_figure)}{seeds})"
    if lead <= 0:
        yield f"That is no better than the recipe's own values {theirs}."
        return
    yield f"That is better by {say_figure(lead)} than the recipe's own values {theirs}."
    if chosen.spread is not None and lead <= chosen.spread:
        yield "So small a lead may be chance: it is no larger than the standard deviation between its seeds."


def _seeds(board: Leaderboard, chosen: TrialRow) -> Iterator[str]:
    if chosen.mean is None:
        return
    num_seeds = len(chosen.figures)
    if chosen.spread is None:
        yield "It was trained again with other seeds, but none of these trainings finished: its spread is not known."
        return
    yield (
        f"Over {num_seeds} seeds it has a mean of {say_figure(chosen.mean)} and a standard deviation of "
        f"{say_figure(chosen.spread)}."
    )
    second = next((row for row in board.rows if row.name != chosen.name and row.status == "finished"), None)
    if second is None or second.mean is None:
        yield "No second configuration was trained with other seeds, so its lead has no measure."
        return
    lead, spread = better_by(board, chosen.mean, second.mean), max(chosen.spread, second.spread or 0.0)
    yield f"Its lead over the second, trial {second.name}, is {say_figure(lead)}: " + (
        "larger than the standard deviation between seeds."
        if lead > spread
        else f"no larger than the standard deviation between seeds ({say_figure(spread)}), so either may be the better."
    )


def _caution(board: Leaderboard) -> Iterator[str]:
    number = sum(row.figure is not None for row in board.rows)
    if number > 1:
        yield (
            f"The best of {number} figures on the same validation patients is too good on average, since luck chose "
            "with it: expect less on new patients."
        )


def _on_test(board: Leaderboard) -> str:
    if board.test is None and board.best in board.tested:
        return "It was evaluated on the test patients by an earlier start of this search."
    if board.test is None:
        return "It has not been evaluated on the test patients."
    metric = board.metric if board.metric in board.test else _INSTEAD
    figure = board.test.get(metric)
    if figure is None or figure["value"] is None:
        return f"On the test patients, evaluated for this configuration only, its {metric} is not defined."
    low, high = figure["low"], figure["high"]
    interval = (
        "no interval" if low is None or high is None else f"95 % interval {say_figure(low)} to {say_figure(high)}"
    )
    others = len({*board.tested} - {board.best})
    when = (
        f"where {say_count(others, 'earlier choice')} of this search had been evaluated too,"
        if others
        else "evaluated once and for this configuration only,"
    )
    return f"On the test patients, {when} its {metric} is {say_figure(figure['value'])} ({interval})."


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
