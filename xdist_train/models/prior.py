"""How often a model saw each class, against how often the data has it. Pure.

Over-sampling (`sampler.alpha`) and class weights both move the prior that a model learns; its probabilities
are then for that prior, and can be turned back by Bayes' rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PriorShift", "find_prior_shift"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PriorShift:
    """Shares of the classes, [K] each, adding up to 1.

    train: in the training images. drawn: in an epoch's draws. learned: drawn times class weight, the prior
    that the model's probabilities are for.
    """

    train: tuple[float, ...]
    drawn: tuple[float, ...]
    learned: tuple[float, ...]

    def correct(self, probabilities: Floats) -> Floats:
        """Probabilities [n, K] under the training images' prior (Saerens et al. 2002, eq. 4)."""
        moved = probabilities * (np.asarray(self.train) / np.asarray(self.learned))
        corrected: Floats = moved / moved.sum(axis=1, keepdims=True)
        return corrected


def find_prior_shift(
    train_counts: Sequence[int], drawn_counts: Sequence[int], class_weights: Floats
) -> PriorShift | None:
    """The shift, or None where the model learned the data's own prior.

    Args:
        train_counts: training images of each class.
        drawn_counts: draws of each class in an epoch (the plan's quotas).
        class_weights: [K], from the loss.
    """
    train, drawn = _shares(train_counts), _shares(drawn_counts)
    learned = _shares(np.asarray(drawn_counts) * class_weights)
    if np.allclose(train, drawn, atol=1e-9) and np.allclose(train, learned, atol=1e-9):
        return None
    return PriorShift(train=train, drawn=drawn, learned=learned)


def _shares(counts: Sequence[int] | Floats) -> tuple[float, ...]:
    values = np.asarray(counts, dtype=np.float64)
    return tuple((values / values.sum()).tolist())
