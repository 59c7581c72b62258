"""Whether probabilities mean what they say, and one number that mends most of it. Pure.

Temperature scaling (Guo et al. 2017, section 4.2) divides logits by one temperature that is fitted on val; no order of
classes changes. Logarithms of probabilities serve as logits, since softmax does not see what is added to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdist_train.evidence.metrics import CALIBRATION_BINS, Scores, calibration_bins, point_figures

__all__ = ["TemperatureEffect", "apply_temperature", "fit_temperature", "reliability", "scale_temperature"]

Floats = NDArray[np.float64]

_LEAST, _MOST = 0.05, 20.0
_STEPS = 60
_TINY = 1e-300  # stands for a probability of 0, whose logarithm has no number


def fit_temperature(labels: NDArray[np.integer], probabilities: Floats) -> float:
    """The temperature in 0.05..20 with the least mean negative log-likelihood.

    The loss is convex in 1 / temperature, so that halving its bracket by the slope's sign finds it; where all images
    have one answer that is right or wrong, the end of the range is it.

    Args:
        labels: [n] in 0..K-1.
        probabilities: [n, K], rows adding up to 1.
    """
    logits = np.log(np.maximum(probabilities, _TINY))
    chosen = logits[np.arange(len(labels)), labels].mean()
    low, high = 1 / _MOST, 1 / _LEAST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        expected = (_softmax(logits * middle) * logits).sum(axis=1).mean()
        low, high = (low, middle) if expected > chosen else (middle, high)
    return float(2 / (low + high))


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities [n, K] with their logits divided by a temperature: above 1 they are less sure."""
    return _softmax(np.log(np.maximum(probabilities, _TINY)) / temperature)


@dataclass(frozen=True)
class TemperatureEffect:
    """A temperature, the images that it was judged on as it makes them, their calibration error without and with it."""

    temperature: float
    scaled: Scores
    ece_before: float
    ece_after: float


def scale_temperature(val: Scores, test: Scores) -> TemperatureEffect:
    """Fit a temperature on val and judge it on test."""
    temperature = fit_temperature(val.labels, val.probabilities)
    scaled = Scores.of(test.labels, apply_temperature(test.probabilities, temperature))
    before, after = (point_figures(scores)["ece"] or 0.0 for scores in (test, scaled))
    return TemperatureEffect(temperature, scaled, before, after)


def reliability(scores: Scores) -> dict[str, Floats]:
    """By bin of the largest probability, (k / 15, (k + 1) / 15]: the bins that `ece` is made of.

    Returns:
        confidence, accuracy [CALIBRATION_BINS], NaN for a bin without images, and count.
    """
    confidence = scores.probabilities.max(axis=1)
    bins = calibration_bins(confidence)
    count = np.bincount(bins, minlength=CALIBRATION_BINS).astype(np.float64)
    means = {
        name: np.bincount(bins, values, CALIBRATION_BINS) / np.where(count > 0, count, np.nan)
        for name, values in (("confidence", confidence), ("accuracy", scores.predicted == scores.labels))
    }
    return {**means, "count": count}


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)
