"""Figures of a classifier and their 95 % intervals. Pure functions of labels, probabilities and patients.

Every figure is a function of sums over images, so that a bootstrap over patients is arithmetic: a resample
is a row of how often each patient was drawn, and its sums are that row times each patient's own sums. The
figure itself is the row of ones. A figure that is not defined (a class without images, say) is None, and
its neighbours stay. Knows no files and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CALIBRATION_BINS",
    "FIGURES",
    "Scores",
    "calibration_bins",
    "confusion_matrix",
    "differences",
    "interval",
    "intervals",
    "patient_resamples",
    "point_figures",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CALIBRATION_BINS = 15
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "auroc_macro", "ece")
_PER_CLASS = ("sensitivity", "specificity", "auroc")
_PURPOSE = 20  # of the random stream; the data plane owns the small numbers
# Elements of the largest temporary; bounds memory at any number of images.
_CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Scores:
    """What a model said about a set of images.

    labels: int64 [n] in 0..K-1. probabilities: float64 [n, K], rows adding up to 1, all finite.
    patients: [n], any values; equal means the same patient.
    """

    labels: Integers
    probabilities: Floats
    patients: NDArray[Any]

    @classmethod
    def of(cls, labels: Any, probabilities: Any, patients: Any = None) -> Scores:
        """From any arrays; without patients each image stands for itself."""
        labels = np.asarray(labels, dtype=np.int64)
        probabilities = np.asarray(probabilities, dtype=np.float64)
        assert len(labels) == len(probabilities) > 0, "figures of no images"
        assert np.isfinite(probabilities).all(), "probabilities are not finite"
        given = np.arange(len(labels)) if patients is None else np.asarray(patients)
        return cls(labels, probabilities, np.unique(given, return_inverse=True)[1])

    @property
    def predicted(self) -> Integers:
        """The likeliest class of each image, [n]; the first of equals."""
        predicted: Integers = self.probabilities.argmax(axis=1)
        return predicted

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.probabilities.shape[1])

    @property
    def num_patients(self) -> int:
        """Different patients."""
        return int(self.patients.max()) + 1


def confusion_matrix(scores: Scores) -> Integers:
    """Images by true class (rows) and predicted class (columns), [K, K]."""
    pairs = scores.labels * scores.num_classes + scores.predicted
    return np.bincount(pairs, minlength=scores.num_classes**2).reshape(scores.num_classes, -1)


def point_figures(scores: Scores) -> dict[str, float | None]:
    """The figures of FIGURES without intervals."""
    values = _figures(_Sums(scores), np.ones((1, scores.num_patients)))
    return {name: _number(values[name][0]) for name in FIGURES}


def intervals(scores: Scores, class_names: Sequence[str], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every figure as {"value", "low", "high"}: 95 % percentile intervals of a bootstrap over patients.

    A resample in which a figure is not defined is left out of that figure's interval; where that is more
    than half of them, the ends are None.

    Args:
        scores: what the model said.
        class_names: K names.
        resamples: of the patients, with replacement, as many as there are.
        seed: of the resamples.

    Returns:
        FIGURES, and `per_class`: by name `sensitivity`, `specificity`, `auroc` (one class against the
        rest) and `n`, its images. Macro figures are means over the classes that have images.
    """
    sums = _Sums(scores)
    point = _figures(sums, np.ones((1, scores.num_patients)))
    parts = [_figures(sums, rows) for rows in _resamples(scores, resamples, seed)]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in point}
    report: dict[str, Any] = {name: interval(point[name][0], drawn[name]) for name in FIGURES}
    counts = np.bincount(scores.labels, minlength=scores.num_classes)
    report["per_class"] = {
        class_name: {
            **{name: interval(point[name][0, index], drawn[name][:, index]) for name in _PER_CLASS},
            "n": int(counts[index]),
        }
        for index, class_name in enumerate(class_names)
    }
    return report


def differences(
    first: Scores, other: Scores, *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """By how much each of FIGURES is greater for `other`, with the 95 % interval of a paired bootstrap over patients.

    Args:
        first: of the same images in the same order as `other`.
        resamples: of the patients; both get the same ones.
        seed: of the resamples.
    """
    assert (first.labels == other.labels).all(), "other images, or in another order"
    assert (first.patients == other.patients).all(), "other patients"
    pair = [_Sums(first), _Sums(other)]
    point = [_figures(sums, np.ones((1, first.num_patients))) for sums in pair]
    parts = [[_figures(sums, rows) for sums in pair] for rows in _resamples(first, resamples, seed)]
    return {
        name: interval(
            point[1][name][0] - point[0][name][0],
            np.concatenate([theirs[name] - ours[name] for ours, theirs in parts]),
        )
        for name in FIGURES
    }


def calibration_bins(confidence: Floats) -> Integers:
    """The bin of each largest probability, [n] in 0..CALIBRATION_BINS-1: (low, high], as in Guo et al. 2017."""
    # A probability of 0 cannot be the largest.
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


class _Sums:
    """Each patient's own sums, and the images sorted by each class's probability."""

    def __init__(self, scores: Scores) -> None:
        classes = scores.num_classes
        self.scores = scores
        self.present = np.bincount(scores.labels, minlength=classes) > 0
        pairs = scores.labels * classes + scores.predicted
        self.confusion = self._by_patient(pairs, classes**2)
        confidence = scores.probabilities.max(axis=1)
        bins = calibration_bins(confidence)
        gap = confidence - (scores.predicted == scores.labels)
        self.calibration_gap = self._by_patient(bins, CALIBRATION_BINS, gap)
        self.order = [_Ranking(scores.probabilities[:, index]) for index in range(classes)]

    def _by_patient(self, columns: Integers, num_columns: int, values: Floats | None = None) -> Floats:
        """Sum of values (1 each by default) by patient and column, [patients, columns]."""
        cells = self.scores.patients * num_columns + columns
        size = self.scores.num_patients * num_columns
        return np.bincount(cells, values, size).reshape(-1, num_columns).astype(np.float64)


class _Ranking:
    """Images in rising order of one class's probability, and where each run of equal ones begins."""

    def __init__(self, probabilities: Floats) -> None:
        self.images = np.argsort(probabilities, kind="stable")
        ordered = probabilities[self.images]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def patient_resamples(
    num_patients: int, resamples: int, seed: int, *, purpose: int, width: int = 0
) -> Iterator[Floats]:
    """How often each patient was drawn, in blocks [b, patients]; what is drawn does not depend on their size.

    Args:
        purpose: of the random stream.
        width: of the widest row that the caller makes of a resample, where that is more than the patients.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose])))
    block = max(1, _CHUNK_ELEMENTS // max(width, num_patients))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = generator.integers(0, num_patients, (rows, num_patients))
        cells = draws + num_patients * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * num_patients).reshape(rows, num_patients).astype(np.float64)


def _resamples(scores: Scores, resamples: int, seed: int) -> Iterator[Floats]:
    width = len(scores.labels)
    return patient_resamples(scores.num_patients, resamples, seed, purpose=_PURPOSE, width=width)


def _figures(sums: _Sums, rows: Floats) -> dict[str, Floats]:
    """All figures of each row of patient weights; NaN where not defined. Per-class ones are [b, K]."""
    classes = sums.scores.num_classes
    confusion = (rows @ sums.confusion).reshape(-1, classes, classes)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    sensitivity = _ratio(hits, true)
    auroc = _aurocs(sums, rows)
    return {
        "accuracy": _ratio(hits.sum(axis=1), total),
        "balanced_accuracy": sensitivity[:, sums.present].mean(axis=1),
        "macro_f1": _f1(hits, true, predicted)[:, sums.present].mean(axis=1),
        "mcc": _mcc(hits, true, predicted, total),
        "auroc_macro": auroc[:, sums.present].mean(axis=1),
        "ece": _ratio(np.abs(rows @ sums.calibration_gap).sum(axis=1), total),
        "sensitivity": sensitivity,
        "specificity": _ratio(total[:, None] - true - predicted + hits, total[:, None] - true),
        "auroc": auroc,
    }


def _f1(hits: Floats, true: Floats, predicted: Floats) -> Floats:
    """F1 of each class; not defined for a class without images."""
    return np.where(true > 0, _ratio(2 * hits, true + predicted), np.nan)


def _mcc(hits: Floats, true: Floats, predicted: Floats, total: Floats) -> Floats:
    """Matthews correlation of K classes (Gorodkin 2004); 0 where all predictions are one class."""
    covariance = hits.sum(axis=1) * total - (true * predicted).sum(axis=1)
    spread_true = total**2 - (true**2).sum(axis=1)
    spread_predicted = total**2 - (predicted**2).sum(axis=1)
    constant = (spread_predicted == 0) & (spread_true > 0)
    return np.where(constant, 0.0, _ratio(covariance, np.sqrt(spread_true * spread_predicted)))


def _aurocs(sums: _Sums, rows: Floats) -> Floats:
    """Area under the ROC curve of each class against the rest, [b, K]."""
    weights = rows[:, sums.scores.patients]
    labels = sums.scores.labels
    columns = [_weighted_auroc(weights, labels == index, order) for index, order in enumerate(sums.order)]
    return np.stack(columns, axis=1)


def _weighted_auroc(weights: Floats, positive: NDArray[np.bool_], ranking: _Ranking) -> Floats:
    """Share of pairs (positive, negative) ranked right, ties half (Mann-Whitney), by image weights [b, n]."""
    ordered = weights[:, ranking.images]
    positives = np.add.reduceat(ordered * positive[ranking.images], ranking.starts, axis=1)
    negatives = np.add.reduceat(ordered, ranking.starts, axis=1) - positives
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return _ratio((positives * (below + 0.5 * negatives)).sum(axis=1), pairs)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def interval(value: float, drawn: Floats) -> dict[str, float | None]:
    """A figure and the ends of its 95 % interval; None where it, or most of its resamples, are not defined."""
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or 2 * len(defined) < len(drawn):
        return {"value": _number(value), "low": None, "high": None}
    low, high = np.percentile(defined, (2.5, 97.5))
    return {"value": _number(value), "low": float(low), "high": float(high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
