"""Thresholds: chosen on one set, judged on another, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xdist_train.evidence.metrics import Scores
from xdist_train.evidence.operating import choose_threshold, operating_figures


def _scores(seed: int, n: int = 400) -> Scores:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    chance = np.clip(generator.normal(0.35 + 0.3 * labels, 0.15), 0.01, 0.99)
    return Scores.of(labels, np.stack([1 - chance, chance], axis=1), np.arange(n) // 4)


@pytest.mark.parametrize("wish", [0.5, 0.95, 1.0])
def test_a_chosen_threshold_reaches_the_wish_and_no_higher_one_does(wish: float) -> None:
    """On the images that it was chosen on."""
    val = _scores(0)
    threshold = choose_threshold(val, 1, wish)
    assert threshold is not None
    of_class = val.probabilities[val.labels == 1, 1]
    assert (of_class >= threshold).mean() >= wish
    assert (of_class > threshold).mean() < wish


def test_figures_are_counts_of_other_images() -> None:
    """With an interval that holds them."""
    test = _scores(1)
    found = operating_figures(test, 1, 0.5, resamples=300)
    positive, yes = test.labels == 1, test.probabilities[:, 1] >= 0.5
    assert found["sensitivity"]["value"] == pytest.approx((positive & yes).sum() / positive.sum())
    assert found["specificity"]["value"] == pytest.approx((~positive & ~yes).sum() / (~positive).sum())
    assert found["precision"]["value"] == pytest.approx((positive & yes).sum() / yes.sum())
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in found.values())


def test_a_class_without_images_has_no_threshold() -> None:
    """And what is not defined is None."""
    scores = Scores.of([0, 0], [[0.9, 0.1], [0.6, 0.4]])
    assert choose_threshold(scores, 1, 0.9) is None
    figures = operating_figures(scores, 1, 0.99, resamples=100)
    assert [None, 1.0, None] == [figures[name]["value"] for name in ("sensitivity", "specificity", "precision")]
