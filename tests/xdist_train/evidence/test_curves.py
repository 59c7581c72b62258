"""Threshold curves against scikit-learn's, with ties, and where a class is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from xdist_train.evidence.curves import average_precision, threshold_curve

_Images = list[tuple[bool, int]]
_IMAGES = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60).filter(
    lambda images: len({positive for positive, _ in images}) == 2
)


def _arrays(images: _Images) -> tuple[np.ndarray, np.ndarray]:
    return np.array([positive for positive, _ in images]), np.array([score / 8 for _, score in images])


@given(_IMAGES)
def test_the_curves_are_scikit_learns(images: _Images) -> None:
    """ROC, precision-recall and average precision, with equal scores."""
    positive, scores = _arrays(images)
    curve = threshold_curve(positive, scores)
    false_rate, true_rate, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    assert np.allclose(false_rate, curve.false_positive_rate)
    assert np.allclose(true_rate, curve.sensitivity)
    assert np.array_equal(thresholds, curve.thresholds)
    precision, recall, _ = precision_recall_curve(positive, scores)
    assert np.allclose(precision[::-1], curve.precision)
    assert np.allclose(recall[::-1], curve.sensitivity)
    assert average_precision_score(positive, scores) == pytest.approx(average_precision(curve))


@given(_IMAGES, st.floats(0.01, 1.0))
def test_the_threshold_for_a_sensitivity_is_the_highest(images: _Images, wish: float) -> None:
    """It reaches it; the next higher one does not."""
    positive, scores = _arrays(images)
    curve = threshold_curve(positive, scores)
    index = curve.at(wish)
    reached = [float((scores[positive] >= threshold).mean()) for threshold in curve.thresholds]
    assert reached[index] >= wish - 1e-9
    assert all(share < wish for share in reached[:index])


def test_a_thin_curve_keeps_its_ends_and_its_shape() -> None:
    """No point of it is new, and the area changes little."""
    generator = np.random.default_rng(0)
    positive = generator.random(20_000) < 0.3
    scores = generator.normal(positive * 1.0, 1.0)
    curve = threshold_curve(positive, scores)
    thin = curve.thinned(300)
    assert len(thin.thresholds) <= 300
    assert set(thin.thresholds) <= set(curve.thresholds)
    assert (curve.thresholds[0], curve.thresholds[-1]) == (thin.thresholds[0], thin.thresholds[-1])
    areas = [np.trapezoid(one.sensitivity, one.false_positive_rate) for one in (curve, thin)]
    assert areas[0] == pytest.approx(areas[1], abs=2e-3)
    assert curve is curve.thinned(10**6)


def test_a_missing_class_has_no_shares() -> None:
    """Not a number, instead of a division by zero."""
    curve = threshold_curve(np.zeros(3, bool), np.array([0.1, 0.5, 0.5]))
    assert np.isnan(curve.sensitivity).all()
    assert [0.0, 2 / 3, 1.0] == pytest.approx(curve.false_positive_rate)
