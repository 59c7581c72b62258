"""Which images are shown."""

from __future__ import annotations

import numpy as np

from xdist_train.evidence.cams.gallery import choose_gallery

_LABELS = np.array(["A", "A", "A", "B", "B", "B"], dtype=object)
_PREDICTED = np.array(["A", "A", "B", "B", "A", "B"], dtype=object)
_PROBABILITIES = np.array([0.6, 0.9, 0.7, 0.8, 0.95, 0.55])


def _rows(class_name: str, group: str, order: str, count: int = 9) -> list[int]:
    shown = choose_gallery(_LABELS, _PREDICTED, _PROBABILITIES, ["A", "B"], count)
    return [item.row for item in shown if (item.class_name, item.group, item.order) == (class_name, group, order)]


def test_the_four_kinds_of_answers_about_a_class() -> None:
    """Each image is in one kind for each class, the surest first."""
    kinds = {group: _rows("A", group, "confident") for group in ("TP", "FP", "TN", "FN")}
    assert {"TP": [1, 0], "FP": [4], "TN": [3, 5], "FN": [2]} == kinds
    assert _rows("B", "FN", "confident") == [4]


def test_random_ones_are_of_the_same_kind_and_always_the_same() -> None:
    """Drawn without the probabilities, by a seed."""
    assert {0, 1} == set(_rows("A", "TP", "random"))
    assert _rows("A", "TN", "random", 1) == _rows("A", "TN", "random", 1)


def test_no_more_than_asked_for() -> None:
    """Of each kind and order; none for none."""
    assert _rows("A", "TP", "confident", 1) == [1]
    assert [] == choose_gallery(_LABELS, _PREDICTED, _PROBABILITIES, ["A", "B"], 0)
