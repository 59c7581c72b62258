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
    `balanced_accuracy` is of the vote with classes weighted alike, beside `chance`, what the same votes would
    reach on average were the labels shuffled.
    """

    accuracy: float
    majority_accuracy: float
    balanced_accuracy: float
    chance: float
    num_images: int
    above_chance: bool


def measure_size_baseline(
    sizes: Sequence[Size], labels: Labels, is_train: npt.NDArray[np.bool_], images_per_patient: float = 1.0
) -> SizeBaseline | None:
    """Vote by size; None where there is nothing to learn from or to try on.

    Args:
        sizes: (width, height) of each image [n].
        labels: class numbers [n].
        is_train: bool [n]; the others are tried.
        images_per_patient: mean; a patient's images tend to be of one size, so they count as one (Kish 1965).
    """
    labels = np.asarray(labels)
    if is_train.all() or not is_train.any():
        return None
    keys = _keys(sizes, is_train)
    class_sizes = np.bincount(labels[is_train], minlength=int(labels.max()) + 1)
    balance = 1 / np.maximum(class_sizes, 1)
    truth = labels[~is_train]
    plain, balanced = (_vote(keys, labels, is_train, weights) for weights in (np.ones(len(balance)), balance))
    recall, chance, deviation = _balanced_accuracy(balanced, truth, len(balance))
    return SizeBaseline(
        accuracy=float((plain == truth).mean()),
        majority_accuracy=float((truth == class_sizes.argmax()).mean()),
        balanced_accuracy=recall,
        chance=chance,
        num_images=len(truth),
        above_chance=recall - chance > max(_LEAST_GAIN, _SURE * deviation * images_per_patient**0.5),
    )


def _balanced_accuracy(votes: Labels, truth: Labels, num_classes: int) -> tuple[float, float, float]:
    """Mean recall, and what it would be on average, and by how much it would vary, were the truth shuffled.

    A sum of one term for each image under a random permutation: Hoeffding 1951, theorem 2.
    """
    cast, held = (np.bincount(column, minlength=num_classes) for column in (votes, truth))
    total, present = len(truth), max(int((held > 0).sum()), 1)
    gain = np.diag(np.divide(1 / present, held, out=np.zeros(num_classes), where=held > 0))  # [vote, truth]
    by_vote, by_truth = gain @ held / total, cast @ gain / total
    centred = gain - by_vote[:, None] - by_truth[None, :] + by_truth @ held / total
    variance = cast @ centred**2 @ held / max(total - 1, 1)
    chance = float(cast @ by_vote)
    return float(gain[votes, truth].sum()), chance, float(variance**0.5)


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
