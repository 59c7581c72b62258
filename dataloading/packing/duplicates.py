"""Images that occur twice: the same bytes, or confirmed to show the same.

Owns the joining of both into sets that a split must not tear apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dataloading.packing.likeness import NearDuplicates

__all__ = ["Duplicates", "first_of_each", "join_duplicates"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Duplicates:
    """Pairs of image ids, first < second.

    Attributes:
        exact: each copy with the first of its kind: int64 [n, 2].
        near: confirmed near-duplicates among images of different bytes; None if they were not looked for.
        linked: number of the set that an image belongs to, -1 for one alone: int64 [images].
    """

    exact: Indices
    near: NearDuplicates | None
    linked: Indices

    @property
    def pairs(self) -> Indices:
        """Exact and near ones: int64 [n, 2]."""
        return np.concatenate([self.exact, self.near.pairs]) if self.near else self.exact


def first_of_each(digests: Sequence[str]) -> Indices:
    """Id of the first image with the same bytes, for each image: int64 [n]."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(digest, number) for number, digest in enumerate(digests)], np.int64)


def join_duplicates(firsts: Indices, near: NearDuplicates | None) -> Duplicates:
    """Sets of images that are tied, directly or through others.

    Args:
        firsts: from `first_of_each`.
        near: pairs in ids, or None.
    """
    copies = np.flatnonzero(firsts != np.arange(len(firsts)))
    exact = np.stack([firsts[copies], copies], axis=1)
    pairs = np.concatenate([exact, near.pairs]) if near else exact
    sets = np.arange(len(firsts))
    while (sets[pairs[:, 0]] != sets[pairs[:, 1]]).any():
        low = np.minimum(sets[pairs[:, 0]], sets[pairs[:, 1]])
        for side in (0, 1):
            np.minimum.at(sets, pairs[:, side], low)
    alone = np.bincount(sets, minlength=len(sets))[sets] == 1
    return Duplicates(exact, near, np.where(alone, -1, sets))
