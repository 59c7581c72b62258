"""Which epoch is the best so far, and when to stop waiting for a better one. Pure; knows no model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from xdist_train.config import EarlyStoppingConfig

__all__ = ["EarlyStopping", "Verdict", "lower_is_better"]

_LOWER_IS_BETTER = ("loss", "ece")


def lower_is_better(metric: str) -> bool:
    """Whether a figure improves downwards: losses and calibration errors do, all others rise."""
    return metric.rpartition("_")[2] in _LOWER_IS_BETTER


@dataclass(frozen=True)
class Verdict:
    """What an epoch's figure means: `improved` on the best so far; `stop` asks the run to end."""

    improved: bool
    stop: bool


@dataclass
class _State:
    """`best` selects the model, `mark` is what patience counts from; both None before the first figure."""

    best: float | None = None
    mark: float | None = None
    bad_epochs: int = 0


class EarlyStopping:
    """Selection of the best epoch, and patience.

    Any better figure is an improvement (its model is kept); only one better by more than `min_delta`
    starts the patience anew. A NaN is no improvement.

    Args:
        config: the early_stopping section; patience 0 never stops.
        metric: name of the figure; tells the direction.
    """

    def __init__(self, config: EarlyStoppingConfig, metric: str) -> None:
        self._config = config
        self._sign = -1.0 if lower_is_better(metric) else 1.0
        self._state = _State()

    @property
    def best(self) -> float | None:
        """The best figure so far."""
        return self._state.best

    def update(self, value: float) -> Verdict:
        """Judge the figure of one more epoch."""
        state = self._state
        improved = self._beats(value, state.best, 0.0)
        if improved:
            state.best = value
        if self._beats(value, state.mark, self._config.min_delta):
            state.mark, state.bad_epochs = value, 0
        else:
            state.bad_epochs += 1
        return Verdict(improved, 0 < self._config.patience <= state.bad_epochs)

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self._state)

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self._state = _State(**state)

    def _beats(self, value: float, other: float | None, margin: float) -> bool:
        if math.isnan(value):
            return False
        return other is None or self._sign * (value - other) > margin
