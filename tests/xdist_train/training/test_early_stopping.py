"""Selection and patience."""

from __future__ import annotations

import json
import math

import pytest

from xdist_train.config import EarlyStoppingConfig
from xdist_train.training.early_stopping import EarlyStopping, lower_is_better


def _verdicts(stopping: EarlyStopping, values: list[float]) -> tuple[list[bool], list[bool]]:
    verdicts = [stopping.update(value) for value in values]
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
    expected = [whole.update(value) for value in values]
    before = [first.update(value) for value in values[:4]]
    second.load(json.loads(json.dumps(first.state())))
    assert expected == before + [second.update(value) for value in values[4:]]
