"""The prior that training moves, and its way back."""

from __future__ import annotations

import numpy as np

from xdist_train.models.prior import find_prior_shift


def test_no_shift_without_alpha_and_weights() -> None:
    """Every image once, all of one weight: the model learns the data's own prior."""
    assert find_prior_shift([10, 30], [10, 30], np.ones(2)) is None


def test_equal_weights_of_any_size_shift_nothing() -> None:
    """A common factor of all weights has no meaning."""
    assert find_prior_shift([10, 30], [10, 30], np.full(2, 0.3)) is None


def test_weights_and_draws_both_count() -> None:
    """What is learned is draws times weight."""
    shift = find_prior_shift([10, 30], [20, 20], np.array([3.0, 1.0]))
    assert shift is not None
    assert (shift.train, shift.drawn, shift.learned) == ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25))


def test_correction_is_bayes_rule() -> None:
    """An uninformative image under the learned prior becomes the training prior."""
    shift = find_prior_shift([10, 30], [20, 20], np.ones(2))
    assert shift is not None
    np.testing.assert_allclose(shift.correct(np.array([[0.5, 0.5], [1.0, 0.0]])), [[0.25, 0.75], [1.0, 0.0]])
