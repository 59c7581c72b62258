"""Which images are shown: for each class its true and false positives and negatives, surest first and at random.

Pure: ids and answers in, entries out; the same every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GROUPS", "Shown", "choose_gallery"]

GROUPS = ("TP", "FP", "TN", "FN")
"""Kinds of answers about a class: right and wrong, yes and no."""
_PURPOSE = 23  # of the random stream


@dataclass(frozen=True)
class Shown:
    """An image in the gallery: why it is there, by its row among those given."""

    row: int
    group: str
    class_name: str
    order: str


def choose_gallery(
    labels: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    probabilities: npt.NDArray[np.float64],
    classes: Sequence[str],
    count: int,
) -> list[Shown]:
    """At most `count` images of each class, group and order.

    Args:
        labels: class names [n].
        predicted: class names [n].
        probabilities: of the predicted class [n].
    """
    shown = []
    for number, name in enumerate(classes):
        is_class, said = labels == name, predicted == name
        members = dict(
            zip(GROUPS, (is_class & said, ~is_class & said, ~is_class & ~said, is_class & ~said), strict=True)
        )
        for group, chosen in members.items():
            rows = np.flatnonzero(chosen)
            key = [number, GROUPS.index(group), _PURPOSE]
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
            orders = {
                "confident": rows[np.argsort(-probabilities[rows], kind="stable")],
                "random": generator.permutation(rows),
            }
            for order, ranked in orders.items():
                shown += [Shown(int(row), group, name, order) for row in ranked[:count]]
    return shown
