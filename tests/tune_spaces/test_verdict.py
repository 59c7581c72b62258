"""Verdicts: what each kind of end says, word for word where words are what matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.tune_spaces.boards import make_board, make_row
from tune_spaces.leaderboard import Leaderboard, Repeat, TrialRow
from tune_spaces.verdict import say_figure, say_seconds, verdict

_UNKNOWN = "So whether the best is better than the recipe is not known."
_TEST = {"balanced_accuracy": {"value": 0.71, "low": 0.6512, "high": 0.77}}


def _seeded(row: TrialRow, *figures: float | None) -> TrialRow:
    repeats = [
        Repeat(
            name=f"r{seed}",
            number=row.number,
            seed=seed,
            status="failed" if figure is None else "finished",
            figure=figure,
        )
        for seed, figure in enumerate(figures, 1)
    ]
    return replace(row, repeats=tuple(repeats))


def _two(**fields: Any) -> Leaderboard:
    """The recipe's own 0.7, and 0.8."""
    return make_board([make_row(0, 0.7), make_row(1, 0.8)], **{"own": "0000"} | fields)


def _said(board: Leaderboard) -> str:
    return " ".join(verdict(board))


def test_the_whole_of_it() -> None:
    """Counts, metric and its patients, the best, the recipe, the caution, the test."""
    rows = [
        make_row(0, 0.7),
        make_row(1, 0.8),
        make_row(2, 0.6, status="pruned"),
        make_row(3, reason="out of memory"),
        make_row(4, reason="out of memory"),
    ]
    assert verdict(make_board(rows, own="0000", test=_TEST)) == [
        "5 configurations were tried: 2 finished, 1 stopped early and 2 failed.",
        "They are compared by balanced_accuracy on the validation patients only (higher is better); no test patient "
        "had a part in the choice.",
        "The best is trial 0001 with balanced_accuracy 0.8000 (epoch 2).",
        "That is better by 0.1000 than the recipe's own values (trial 0000, 0.7000).",
        "The best of 3 figures on the same validation patients is too good on average, since luck chose with it: "
        "expect less on new patients.",
        "On the test patients, evaluated once and for this configuration only, its balanced_accuracy is 0.7100 (95 % "
        "interval 0.6512 to 0.7700).",
    ]


@pytest.mark.parametrize(
    ("status", "opening"),
    [
        ("running", "The search is still running: this is how far it has come."),
        ("stopped", "The search was stopped before its end; it can go on."),
        ("failed", "The search failed."),
    ],
)
def test_a_search_that_did_not_end_says_so_first(status: str, opening: str) -> None:
    """With trials and without."""
    assert opening == verdict(_two(status=status))[0]
    assert [opening, "No configuration was tried."] == verdict(make_board([], status=status))


def test_all_failed() -> None:
    """No best, and no word on test or recipe."""
    said = verdict(make_board([make_row(0), make_row(1)]))
    assert "2 configurations were tried: 2 failed." == said[0]
    assert "None of them finished with a figure, so there is no best configuration yet." == said[-1]
    assert 3 == len(said)


def test_a_lower_loss_is_better() -> None:
    """The direction turns the comparison."""
    board = make_board([make_row(0, 0.7), make_row(1, 0.5)], own="0000", metric="loss", direction="minimize")
    assert "(lower is better)" in _said(board)
    assert "That is better by 0.2000 than the recipe's own values (trial 0000, 0.7000)." in verdict(board)


@pytest.mark.parametrize(
    ("board", "sentence"),
    [
        (_two(best="0000"), "It has the recipe's own values: no other that finished ranks above it."),
        (
            make_board([make_row(0, 0.7), make_row(1)], own="0000"),
            "It has the recipe's own values: no other configuration finished.",
        ),
        (_two(own=None), f"The recipe's own values were not tried. {_UNKNOWN}"),
        (
            _two(own=None, outside={"optim.lr": "0.5 is not in 0.1..0.2", "optim.name": "depends on it"}),
            "The recipe's own values lie outside of the space and were not tried (optim.lr: 0.5 is not in 0.1..0.2; "
            f"optim.name: depends on it). {_UNKNOWN}",
        ),
        (
            make_board([make_row(0, 0.7, status="pruned"), make_row(1, 0.8)], own="0000"),
            f"The trial with the recipe's own values did not finish (stopped early). {_UNKNOWN}",
        ),
        (
            make_board([make_row(0), make_row(1, 0.8)], own="0000"),
            f"The trial with the recipe's own values did not finish (failed). {_UNKNOWN}",
        ),
        (
            make_board([make_row(0, 0.8), make_row(1, 0.8)], own="0001"),
            "That is no better than the recipe's own values (trial 0001, 0.8000).",
        ),
        (
            make_board([_seeded(make_row(0, 0.7), 0.6), _seeded(make_row(1, 0.8), 0.9)], own="0000"),
            "That is better by 0.2000 than the recipe's own values (trial 0000, 0.6500, means over seeds).",
        ),
    ],
)
def test_against_the_recipe(board: Leaderboard, sentence: str) -> None:
    """Better, not better, the same, not tried, outside of the space, or not finished."""
    assert sentence in verdict(board)


def test_a_lead_within_the_spread_is_called_so() -> None:
    """Over the recipe, where the best has other seeds; and a mean of zero is a mean."""
    board = make_board([make_row(0, 0.7), _seeded(make_row(1, 0.72), 0.6)], own="0000")
    said = verdict(board)
    at = said.index("That is better by 0.0200 than the recipe's own values (trial 0000, 0.7000).")
    assert said[at + 1].startswith("So small a lead may be chance")
    zero = make_board([_seeded(make_row(0, 0.5), -0.5), _seeded(make_row(1, 0.1), -0.3)], own="0001", metric="mcc")
    assert "That is better by 0.1000 than the recipe's own values (trial 0001, -0.1000, means over seeds)." in verdict(
        zero
    )


def test_seeds_say_whether_the_lead_is_more_than_chance() -> None:
    """The lead over the second, against the larger of the two standard deviations."""
    clear = make_board([_seeded(make_row(0, 0.8), 0.82), _seeded(make_row(1, 0.7), 0.72)])
    assert verdict(clear)[4:6] == [
        "Over 2 seeds it has a mean of 0.8100 and a standard deviation of 0.0141.",
        "Its lead over the second, trial 0001, is 0.1000: larger than the standard deviation between seeds.",
    ]
    unclear = make_board([_seeded(make_row(0, 0.8), 0.82), _seeded(make_row(1, 0.7), 0.9)])
    assert (
        "Its lead over the second, trial 0001, is 0.0100: no larger than the standard deviation between seeds "
        "(0.1414), so either may be the better."
    ) in verdict(unclear)
    alone = make_board([_seeded(make_row(0, 0.8), 0.82), make_row(1, 0.7)])
    assert "No second configuration was trained with other seeds, so its lead has no measure." in verdict(alone)
    broken = make_board([_seeded(make_row(0, 0.8), None), make_row(1, 0.7)])
    assert "none of these trainings finished: its spread is not known." in _said(broken)
    assert "standard deviation" not in _said(_two())


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        (None, "It has not been evaluated on the test patients."),
        (
            {"balanced_accuracy": {"value": 0.71, "low": None, "high": None}},
            "On the test patients, evaluated once and for this configuration only, its balanced_accuracy is 0.7100 (no "
            "interval).",
        ),
        (
            {"balanced_accuracy": {"value": None, "low": None, "high": None}},
            "On the test patients, evaluated for this configuration only, its balanced_accuracy is not defined.",
        ),
    ],
)
def test_on_test(test: dict[str, Any] | None, sentence: str) -> None:
    """What there is, and no more."""
    assert sentence == verdict(_two(test=test))[-1]


def test_a_search_by_loss_says_another_figure_on_test() -> None:
    """`evaluation/test.json` has no loss."""
    board = make_board([make_row(0, 0.4)], metric="loss", direction="minimize", test=_TEST)
    assert "its balanced_accuracy is 0.7100 (95 % interval 0.6512 to 0.7700)." in verdict(board)[-1]


def test_one_figure_is_not_the_best_of_many() -> None:
    """No caution where nothing was chosen among."""
    assert "too good" not in _said(make_board([make_row(0, 0.4), make_row(1)]))
    assert "The best of 2 figures" in _said(_two())


def test_figures_and_times_are_said_plainly() -> None:
    """Small figures keep their digits; times have two units."""
    assert ["0.9000", "0.000123", "-0.5000", "0.0000"] == [say_figure(f) for f in (0.9, 0.00012345, -0.5, 0.0)]
    assert ["0 s", "59 s", "1 min 01 s", "2 h 05 min"] == [say_seconds(s) for s in (0.2, 59.4, 61, 7520)]


def test_a_test_that_was_looked_at_before_says_so() -> None:
    """A search that went on after its end, and then chose another."""
    board = _two(best="0001", test=_TEST, tested=("0000", "0001"))
    assert "On the test patients, where 1 earlier choice of this search had been evaluated too, its" in _said(board)


def test_an_evaluation_of_an_earlier_start_is_said() -> None:
    """A search that goes on with more trials has been told of test already."""
    board = _two(best="0001", tested=("0001",))
    assert "It was evaluated on the test patients by an earlier start of this search." == verdict(board)[-1]
