"""What every threshold on one class's probability does: ROC and precision-recall curves. Pure.

A threshold says yes from itself on (score >= threshold); equal scores are one point, as in Fawcett 2006, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ThresholdCurve", "average_precision", "threshold_curve"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Counts at falling thresholds, the first of which says no to all.

    thresholds: [m + 1], infinity first. true_positives, false_positives: [m + 1], images said yes to.
    """

    thresholds: Floats
    true_positives: Floats
    false_positives: Floats

    @property
    def sensitivity(self) -> Floats:
        """Share of the positives said yes to (recall); NaN without positives."""
        return _share(self.true_positives, self.true_positives[-1])

    @property
    def false_positive_rate(self) -> Floats:
        """1 - specificity; NaN without negatives."""
        return _share(self.false_positives, self.false_positives[-1])

    @property
    def precision(self) -> Floats:
        """Share of positives among those said yes to; 1 where that is nobody, as scikit-learn has it."""
        said_yes = self.true_positives + self.false_positives
        return np.where(said_yes > 0, self.true_positives / np.maximum(said_yes, 1), 1.0)

    def at(self, sensitivity: float) -> int:
        """Index of the highest threshold that reaches a sensitivity."""
        return int(np.argmax(self.sensitivity >= sensitivity - 1e-12))

    def thinned(self, points: int) -> ThresholdCurve:
        """About so many of its points, evenly along the curve, ends and corners of steps kept in place."""
        if len(self.thresholds) <= points:
            return self
        ends = (max(self.true_positives[-1], 1), max(self.false_positives[-1], 1))
        along = self.true_positives / ends[0] + self.false_positives / ends[1]
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)).clip(0, len(along) - 1))
        return ThresholdCurve(self.thresholds[kept], self.true_positives[kept], self.false_positives[kept])


def threshold_curve(positive: NDArray[np.bool_], scores: Floats) -> ThresholdCurve:
    """The curve of one class against the rest.

    Args:
        positive: [n], whether an image is of the class.
        scores: [n], its probability of the class.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.r_[np.flatnonzero(np.diff(ranked)), len(ranked) - 1] if len(ranked) else np.zeros(0, np.int64)
    hits = np.cumsum(positive[order], dtype=np.float64)[ends]
    return ThresholdCurve(np.r_[np.inf, ranked[ends]], np.r_[0.0, hits], np.r_[0.0, ends + 1 - hits])


def average_precision(curve: ThresholdCurve) -> float:
    """Area under the precision-recall curve as a sum of steps: sum of (R_k - R_{k-1}) P_k."""
    return float((np.diff(curve.sensitivity) * curve.precision[1:]).sum())


def _share(counts: Floats, total: float) -> Floats:
    return counts / total if total else np.full(len(counts), np.nan)
