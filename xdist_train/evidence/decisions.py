"""From probabilities to a decision: calibrated, by a threshold for a wished sensitivity, or left to a person. Pure.

All of it is learned from val. The threshold is on the model's own probability, as in report and card; confidence is
the largest calibrated probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.calibration import apply_temperature, fit_temperature
from xdist_train.evidence.operating import choose_threshold

__all__ = ["DEFERRED", "Rule", "Wish", "learn_rule", "parse_wish"]

DEFERRED = "deferred"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Wish:
    """A class that is to be found with a sensitivity in 0..1."""

    class_name: str
    sensitivity: float


@dataclass(frozen=True)
class Rule:
    """What decides.

    temperature: None where nothing was learned. index, threshold: of the class that is looked for; None if none is.
    defer_below: confidence.
    """

    temperature: float | None = None
    index: int | None = None
    threshold: float = 0.0
    defer_below: float = 0.0

    def calibrated(self, probabilities: Floats) -> Floats | None:
        """The same [n, K] by temperature; None without one."""
        return None if self.temperature is None else apply_temperature(probabilities, self.temperature)

    def decide(self, probabilities: Floats) -> NDArray[np.int64]:
        """Place of the class that each of [n, K] is taken for, -1 where a person is to decide."""
        chosen: NDArray[np.int64] = probabilities.argmax(axis=1).astype(np.int64)
        if self.index is not None:
            others = probabilities.copy()
            others[:, self.index] = -1
            found = probabilities[:, self.index] >= self.threshold
            chosen = np.where(found, self.index, others.argmax(axis=1))
        if self.defer_below:
            calibrated = self.calibrated(probabilities)
            assert calibrated is not None, "confidence is calibrated"
            chosen = np.where(calibrated.max(axis=1) < self.defer_below, -1, chosen)
        return chosen


def parse_wish(text: str) -> Wish:
    """`CLASS=0.95`.

    Raises:
        InputError: it is not that.
    """
    name, _, number = text.rpartition("=")
    try:
        sensitivity = float(number)
    except ValueError:
        sensitivity = 0.0
    if not name or not 0 < sensitivity <= 1:
        raise InputError(f"--find {text!r} is not CLASS=SENSITIVITY with a sensitivity in 0..1, such as CNV=0.95.")
    return Wish(name, sensitivity)


def learn_rule(val: SplitAnswers, wish: Wish | None, defer_below: float) -> Rule:
    """Temperature and threshold by a run's own answers on val.

    Raises:
        InputError: no such class, none of its images in val, or a confidence outside 0..1.
    """
    if not 0 <= defer_below <= 1:
        raise InputError(f"--defer-below {defer_below}: a confidence lies in 0..1.")
    temperature = fit_temperature(val.labels, val.probabilities)
    if wish is None:
        return Rule(temperature, defer_below=defer_below)
    if wish.class_name not in val.classes:
        raise InputError(f"--find {wish.class_name!r}: the model's classes are {', '.join(val.classes)}.")
    index = val.classes.index(wish.class_name)
    threshold = choose_threshold(val.scores(), index, wish.sensitivity)
    if threshold is None:
        raise InputError(f"--find {wish.class_name!r}: val has no image of it, so that no threshold can be chosen.")
    return Rule(temperature, index, threshold, defer_below)
