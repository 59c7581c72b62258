"""Folds joined and seeds averaged: every image once, and arithmetic as numpy has it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from tests.tune_spaces.made_up_parts import NUM_IMAGES, answer, write_small
from tune_spaces.pooling import average_seeds, join_folds, mean_figures, mean_prior, mean_spread
from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.metrics import FIGURES
from xdist_train.models.prior import PriorShift

_ALL = np.arange(NUM_IMAGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SplitAnswers:
    """Answers for every image of a small data set."""
    return answer(write_small(tmp_path_factory.mktemp("pooling") / "set"), _ALL)


def _rows(answers: SplitAnswers, rows: np.ndarray) -> SplitAnswers:
    return replace(
        answers,
        ids=answers.ids[rows],
        sources=tuple(answers.sources[row] for row in rows),
        labels=answers.labels[rows],
        probabilities=answers.probabilities[rows],
    )


@given(folds=st.lists(st.integers(0, 4), min_size=NUM_IMAGES, max_size=NUM_IMAGES), order=st.randoms())
def test_folds_joined_are_the_whole(whole: SplitAnswers, folds: list[int], order) -> None:
    """However images are dealt, and in whatever order each part has them."""
    parts = {}
    for fold in sorted(set(folds)):
        rows = np.flatnonzero(np.array(folds) == fold).tolist()
        order.shuffle(rows)
        parts[f"fold{fold}"] = _rows(whole, np.array(rows))
    joined = join_folds(parts, _ALL)
    assert whole.ids.tolist() == joined.ids.tolist()
    assert whole.sources == joined.sources
    assert whole.labels.tolist() == joined.labels.tolist()
    assert whole.probabilities.tolist() == joined.probabilities.tolist()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*range(20), *range(19, 36)], r"1 images are answered for twice or more \(the first is image 19\)"),
        ([*range(30)], r"6 images are answered for not at all \(the first is image 30\)"),
    ],
)
def test_images_twice_or_missing_are_refused(whole: SplitAnswers, rows: list[int], words: str) -> None:
    """A pooled figure of them would be of another set."""
    half = np.array(rows[:10]), np.array(rows[10:])
    with pytest.raises(InputError, match=words) as error:
        join_folds({"fold0": _rows(whole, half[0]), "fold1": _rows(whole, half[1])}, _ALL)
    assert "predictions of fold0, fold1" in str(error.value)


def test_images_of_elsewhere_are_refused(whole: SplitAnswers) -> None:
    """Those that the split does not have in test."""
    with pytest.raises(InputError, match="3 images are answered for though they are not in the split"):
        join_folds({"given": _rows(whole, _ALL)}, _ALL[3:])


def test_other_classes_are_refused(whole: SplitAnswers) -> None:
    """Columns of probabilities would be of different things."""
    with pytest.raises(InputError, match="part b has classes"):
        join_folds({"a": _rows(whole, _ALL[:9]), "b": replace(whole, classes=("x", "y", "z"))}, _ALL)


@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=5))
def test_seeds_are_averaged_by_image(whole: SplitAnswers, seeds: list[int]) -> None:
    """Probabilities as numpy means them; rows still add up to 1."""
    drawn = [np.random.default_rng(seed).dirichlet([1, 1, 1], NUM_IMAGES) for seed in seeds]
    pooled = average_seeds([replace(whole, probabilities=values) for values in drawn])
    np.testing.assert_allclose(np.stack(drawn).mean(axis=0), pooled.probabilities)
    np.testing.assert_allclose(1, pooled.probabilities.sum(axis=1))
    assert whole.ids.tolist() == pooled.ids.tolist()


@pytest.mark.parametrize("name", ["ids", "labels"])
def test_seeds_of_other_images_are_refused(whole: SplitAnswers, name: str) -> None:
    """Or with other labels: then the data set was another."""
    other = replace(whole, **{name: getattr(whole, name)[::-1]})
    with pytest.raises(InputError, match="other images or labels"):
        average_seeds([whole, other])


@given(values=st.lists(st.floats(0, 1) | st.none(), max_size=8))
def test_mean_and_spread_are_numpys(values: list[float | None]) -> None:
    """Of the values that are defined, with n - 1; None where there are too few."""
    known = np.array([value for value in values if value is not None])
    found = mean_spread(values)
    assert len(known) == found["n"]
    assert (len(known) < 1, len(known) < 2) == (found["mean"] is None, found["standard_deviation"] is None)
    if len(known) > 1:
        assert found["mean"] == pytest.approx(known.mean())
        assert found["standard_deviation"] == pytest.approx(known.std(ddof=1), abs=1e-12)


def test_every_figure_has_a_mean() -> None:
    """Each by itself."""
    rows = [dict.fromkeys(FIGURES, value) for value in (0.2, 0.4, None)]
    found = mean_figures(rows)
    assert [*FIGURES] == [*found]
    assert all(spread == {**spread, "mean": pytest.approx(0.3), "n": 2} for spread in found.values())


def test_the_prior_is_the_mean_of_the_parts(whole: SplitAnswers) -> None:
    """Whether training moved the classes' shares is told by each part's figures; folds differ by a few images."""
    classes = ["A", "B"]
    moved = [
        {name: dict(zip(classes, shares, strict=True)) for name in ("train", "drawn", "learned")}
        for shares in ((0.2, 0.8), (0.4, 0.6))
    ]
    prior = mean_prior([{"classes": classes, "prior": prior} for prior in moved])
    assert isinstance(prior, PriorShift)
    assert prior.train == pytest.approx((0.3, 0.7))
    assert mean_prior([whole.report]) is None
