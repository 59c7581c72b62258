"""Temperature and reliability: against brute force, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from xdist_train.evidence.calibration import apply_temperature, fit_temperature, reliability
from xdist_train.evidence.metrics import Scores, point_figures


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sure(seed: int, factor: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), and probabilities whose logits are `factor` times too large."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (n, 3))
    chances = _softmax(logits)
    labels = (generator.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return labels, _softmax(logits * factor)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    """Labels that follow the logits ask for the factor that these were multiplied by."""
    labels, probabilities = _sure(0, factor)
    assert fit_temperature(labels, probabilities) == pytest.approx(factor, rel=0.08)


def test_the_temperature_has_the_least_loss() -> None:
    """No other on a fine grid has less."""
    labels, probabilities = _sure(1, 1.7, 300)
    found = fit_temperature(labels, probabilities)

    def loss(temperature: float) -> float:
        scaled = apply_temperature(probabilities, temperature)
        return float(-np.log(scaled[np.arange(len(labels)), labels]).mean())

    grid = [loss(temperature) for temperature in np.linspace(0.2, 5, 481)]
    assert loss(found) <= min(grid) + 1e-9
    assert loss(found) < loss(found * 1.2)


@pytest.mark.parametrize(("right", "end"), [(True, 0.05), (False, 20.0)])
def test_answers_that_are_all_right_or_all_wrong_end_at_the_range(right: bool, end: float) -> None:
    """No temperature in between is best; zeros among the probabilities do no harm."""
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    labels = np.array([0, 1, 0]) if right else np.array([1, 0, 1])
    assert fit_temperature(labels, probabilities) == pytest.approx(end, rel=1e-6)


def test_a_temperature_keeps_the_order_and_the_sum() -> None:
    """1 changes nothing, any other no answer."""
    _, probabilities = _sure(2, 1.0, 50)
    assert np.allclose(probabilities, apply_temperature(probabilities, 1.0))
    scaled = apply_temperature(probabilities, 3.0)
    assert np.allclose(1, scaled.sum(axis=1))
    assert (probabilities.argsort(axis=1) == scaled.argsort(axis=1)).all()
    assert (scaled.max(axis=1) <= probabilities.max(axis=1)).all()


def test_reliability_is_what_the_calibration_error_is_made_of() -> None:
    """The mean gap over images is `ece`."""
    labels, probabilities = _sure(3, 2.0, 500)
    scores = Scores.of(labels, probabilities)
    bins = reliability(scores)
    gaps = np.nan_to_num(np.abs(bins["confidence"] - bins["accuracy"]))
    assert 500 == bins["count"].sum()
    assert point_figures(scores)["ece"] == pytest.approx(float((gaps * bins["count"]).sum() / 500))
    after = Scores.of(labels, apply_temperature(probabilities, fit_temperature(labels, probabilities)))
    assert (point_figures(after)["ece"] or 0) < (point_figures(scores)["ece"] or 0) / 2
