"""A threshold on one class's probability, chosen on val for a wished sensitivity, and what it does on other images.

Choosing and judging on the same images would flatter it. Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdist_train.evidence.curves import threshold_curve
from xdist_train.evidence.means import PatientMeans
from xdist_train.evidence.metrics import Scores, interval

__all__ = ["choose_threshold", "operating_figures"]

_FIGURES = ("sensitivity", "specificity", "precision")


def choose_threshold(scores: Scores, index: int, sensitivity: float) -> float | None:
    """The highest threshold on a class's probability that finds such a share of its images; None if it has none."""
    curve = threshold_curve(scores.labels == index, scores.probabilities[:, index])
    return float(curve.thresholds[curve.at(sensitivity)]) if curve.true_positives[-1] else None


def operating_figures(
    scores: Scores, index: int, threshold: float, *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Sensitivity, specificity and precision of `probability >= threshold`, with 95 % intervals over patients.

    Args:
        scores: of other images than those that the threshold was chosen on.
        index: of the class.
        threshold: on its probability.
    """
    positive, said_yes = scores.labels == index, scores.probabilities[:, index] >= threshold
    columns = np.stack(
        [
            _among(positive, said_yes),
            _among(~positive, ~said_yes),
            _among(said_yes, positive),
        ],
        axis=1,
    )
    means = PatientMeans(columns, scores.patients)
    point, drawn = means.point(), means.resampled(resamples, seed)
    return {name: interval(point[k], drawn[:, k]) for k, name in enumerate(_FIGURES)}


def _among(chosen: NDArray[np.bool_], values: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values of the chosen images, NaN for the others."""
    return np.where(chosen, values.astype(np.float64), np.nan)
