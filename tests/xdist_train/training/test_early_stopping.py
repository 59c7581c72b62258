"""Selection and patience."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdist_train.config import EarlyStoppingConfig
from xdist_train.training.early_stopping import EarlyStopping, lower_is_better


def _verdicts(stopping: EarlyStopping, values: list[float]) -> tuple[list[bool], list[bool]]:
    verdicts = [stopping.update(dict.fromkeys(("accuracy", "loss", "mcc"), value)) for value in values]
    return [verdict.improved for verdict in verdicts], [verdict.stop for verdict in verdicts]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("loss", True), ("val_loss", True), ("ece", True), ("mcc", False), ("balanced_accuracy", False)],
)
def test_the_direction_is_in_the_name(metric: str, expected: bool) -> None:
    """Losses and calibration errors fall, all others rise."""
    assert expected == lower_is_better(metric)


def test_it_stops_after_patience_epochs_without_improvement() -> None:
    """Patience 2: the second bad epoch in a row ends the run."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2), "accuracy")
    improved, stop = _verdicts(stopping, [0.5, 0.4, 0.6, 0.6, 0.6])
    assert improved == [True, False, True, False, False]
    assert stop == [False, False, False, False, True]


def test_a_loss_improves_downwards() -> None:
    """The best loss is the least."""
    stopping = EarlyStopping(EarlyStoppingConfig(), "loss")
    assert _verdicts(stopping, [1.0, 0.5, 0.7]) == ([True, True, False], [False] * 3)
    assert stopping.best == 0.5


def test_patience_zero_never_stops() -> None:
    """Off by default."""
    _, stop = _verdicts(EarlyStopping(EarlyStoppingConfig(), "mcc"), [0.1] * 50)
    assert not any(stop)


def test_nan_is_no_improvement() -> None:
    """A NaN counts as a bad epoch, the first one too, and never as the best."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2), "mcc")
    assert _verdicts(stopping, [math.nan, 0.1, math.nan, math.nan]) == (
        [False, True, False, False],
        [False, False, False, True],
    )


def test_small_gains_are_selected_but_do_not_win_patience() -> None:
    """Below min_delta a better model is still the best, while patience runs on."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2, min_delta=0.1), "mcc")
    assert _verdicts(stopping, [0.5, 0.55, 0.59]) == ([True, True, True], [False, False, True])


def test_small_gains_add_up() -> None:
    """Patience counts from the last mark, not from the last epoch."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2, min_delta=0.1), "mcc")
    _, stop = _verdicts(stopping, [0.5, 0.56, 0.62, 0.68])
    assert not any(stop)


def test_it_goes_on_from_its_state() -> None:
    """Restored from JSON it judges as if never interrupted."""
    values = [0.5, 0.6, 0.55, 0.58, 0.61, 0.6, 0.6, 0.6]
    config = EarlyStoppingConfig(patience=3, min_delta=0.02)
    whole, first, second = (EarlyStopping(config, "mcc") for _ in range(3))
    expected = [whole.update({"mcc": value}) for value in values]
    before = [first.update({"mcc": value}) for value in values[:4]]
    second.load(json.loads(json.dumps(first.state())))
    assert expected == before + [second.update({"mcc": value}) for value in values[4:]]


_WATCHED = EarlyStoppingConfig(patience=3, watch=("loss", "accuracy"), smoothing=0.8)


def _outcomes(losses: list[float], accuracies: list[float]) -> list[tuple[str, ...]]:
    stopping = EarlyStopping(_WATCHED, "accuracy")
    both = zip(losses, accuracies, strict=True)
    return [stopping.update({"loss": loss, "accuracy": accuracy}).exhausted for loss, accuracy in both]


@pytest.mark.parametrize(
    ("losses", "accuracies", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9], ()),
        ([0.9, 1.0, 1.1, 1.2, 1.3], [0.5, 0.6, 0.7, 0.8, 0.9], ("loss",)),
        ([0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5], ("accuracy",)),
        ([0.9, 1.0, 1.1, 1.2, 1.3], [0.9, 0.8, 0.7, 0.6, 0.5], ("loss", "accuracy")),
    ],
)
def test_the_four_outcomes(losses: list[float], accuracies: list[float], expected: tuple[str, ...]) -> None:
    """None, loss, accuracy, both: each when its own patience is used up, with the third bad epoch."""
    assert [(), (), (), expected, expected] == _outcomes(losses, accuracies)


def test_the_average_is_judged_and_the_epoch_is_selected() -> None:
    """0.2 of the new and 0.8 of the past: one good epoch is the best at once, and moves the average by a fifth."""
    stopping = EarlyStopping(_WATCHED, "accuracy")
    stopping.update({"loss": 1.0, "accuracy": 0.5})
    assert stopping.update({"loss": 0.5, "accuracy": 0.7}).improved
    averages = {name: watched["average"] for name, watched in stopping.state()["watched"].items()}
    assert {"loss": pytest.approx(0.9), "accuracy": pytest.approx(0.54)} == averages
    # Worse than the epoch before, but not than what the average was: patience does not run.
    assert 0 == stopping.state()["watched"]["accuracy"]["bad_epochs"]
    assert not stopping.update({"loss": 0.8, "accuracy": 0.6}).improved
    assert 0 == stopping.state()["watched"]["accuracy"]["bad_epochs"]


def test_all_must_be_exhausted_to_stop_and_a_drop_begins_anew() -> None:
    """The loss alone never stops a run; after `begin_anew` its patience starts again."""
    stopping = EarlyStopping(_WATCHED, "accuracy")
    verdicts = [stopping.update({"loss": 1.0 + n, "accuracy": 0.1 * n}) for n in range(5)]
    assert not any(verdict.stop for verdict in verdicts)
    assert ("loss",) == verdicts[-1].exhausted
    stopping.begin_anew()
    assert [(), (), ("loss",)] == [stopping.update({"loss": 9.0, "accuracy": 1.0 + n}).exhausted for n in range(3)]
    assert [stopping.update({"loss": 9.0, "accuracy": 0.0}).stop for _ in range(3)] == [False, False, True]


def test_a_state_of_the_first_version_is_read() -> None:
    """One figure, without a name: patience goes on where it was."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2), "mcc")
    stopping.load({"best": 0.6, "mark": 0.6, "bad_epochs": 1})
    verdict = stopping.update({"mcc": 0.5})
    assert (False, True, 0.6) == (verdict.improved, verdict.stop, stopping.best)


@settings(deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    smoothing=st.floats(0, 0.99),
)
def test_a_cut_changes_no_verdict(values: list[tuple[float, float]], cut: int, smoothing: float) -> None:
    """Two figures, any smoothing, restored from JSON anywhere."""
    config = EarlyStoppingConfig(patience=2, watch=("loss", "accuracy"), smoothing=smoothing)
    whole, first, second = (EarlyStopping(config, "accuracy") for _ in range(3))
    rows = [{"loss": loss, "accuracy": accuracy} for loss, accuracy in values]
    expected = [whole.update(row) for row in rows]
    before = [first.update(row) for row in rows[:cut]]
    second.load(json.loads(json.dumps(first.state())))
    assert expected == before + [second.update(row) for row in rows[cut:]]
