"""How much of the label an image's width and height give away.

In OCT2017 height alone rules classes out; a network that is trained on such a set may read the size (through aspect,
borders or sharpness) instead of the disease. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SizeBaseline", "measure_size_baseline"]

Labels = npt.NDArray[np.integer]
Size = tuple[int, int]

_RARE: Size = (0, 0)  # stands for every size seen once, or never, in train
_SURE = 3.0  # standard errors above chance
_LEAST_GAIN = 0.05


@dataclass(frozen=True)
class SizeBaseline:
    """A vote by size, learned on train and tried on the rest.

    `accuracy` is of the plain vote, beside `majority_accuracy` of always naming train's largest class;
    `balanced_accuracy` is of the vote with classes weighted alike, beside `chance`, one by the number of classes.
    """

    accuracy: float
    majority_accuracy: float
    balanced_accuracy: float
    chance: float
    num_images: int
    above_chance: bool


def measure_size_baseline(
    sizes: Sequence[Size], labels: Labels, is_train: npt.NDArray[np.bool_]
) -> SizeBaseline | None:
    """Vote by size; None where there is nothing to learn from or to try on.

    Args:
        sizes: (width, height) of each image [n].
        labels: class numbers [n].
        is_train: bool [n]; the others are tried.
    """
    labels = np.asarray(labels)
    if is_train.all() or not is_train.any():
        return None
    keys = _keys(sizes, is_train)
    class_sizes = np.bincount(labels[is_train], minlength=int(labels.max()) + 1)
    balance = 1 / np.maximum(class_sizes, 1)
    truth = labels[~is_train]
    plain, balanced = (_vote(keys, labels, is_train, weights) for weights in (np.ones(len(balance)), balance))
    accuracy = float((plain == truth).mean())
    majority = float((truth == class_sizes.argmax()).mean())
    present = np.unique(truth)
    recall = float(np.mean([(balanced[truth == label] == label).mean() for label in present]))
    chance = 1 / len(present)
    gains = [
        (accuracy - majority, majority * (1 - majority) / len(truth)),
        (recall - chance, sum(chance * (1 - chance) / (truth == label).sum() for label in present) * chance**2),
    ]
    above = any(gain > max(_LEAST_GAIN, _SURE * variance**0.5) for gain, variance in gains)
    return SizeBaseline(accuracy, majority, recall, chance, len(truth), above)


def _keys(sizes: Sequence[Size], is_train: npt.NDArray[np.bool_]) -> list[Size]:
    """Sizes, with those that train has at most once put together: an odd size can be a sign too."""
    seen = Counter(size for size, train in zip(sizes, is_train, strict=True) if train)
    return [size if seen[size] > 1 else _RARE for size in sizes]


def _vote(
    keys: list[Size], labels: Labels, is_train: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> Labels:
    """The class with most weight among train's images of the same size; of all sizes where train has none."""
    votes: dict[Size, npt.NDArray[np.float64]] = {}
    for key, label in zip([keys[row] for row in np.flatnonzero(is_train)], labels[is_train], strict=True):
        votes.setdefault(key, np.zeros(len(weights)))[label] += weights[label]
    default = sum(votes.values())
    return np.array([np.argmax(votes.get(keys[row], default)) for row in np.flatnonzero(~is_train)])
