"""Which epoch is the best so far, and when to stop waiting for a better one. Pure; knows no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    """What an epoch's figures mean.

    `improved` on the best so far; `exhausted` names the watched figures whose patience is used up; `stop` asks the
    run to end, since all of them are.
    """

    improved: bool
    stop: bool
    exhausted: tuple[str, ...] = ()


@dataclass
class _Watched:
    """A figure's moving average, the mark that patience counts from, and epochs since; None before the first."""

    average: float | None = None
    mark: float | None = None
    bad_epochs: int = 0


class EarlyStopping:
    """Selection of the best epoch, and patience.

    Any better figure is an improvement (its model is kept). Patience looks at moving averages (`smoothing`; 0 takes
    each epoch by itself) of the watched figures, and only one better by more than `min_delta` starts it anew. With
    loss and accuracy watched these are the four outcomes none, loss, accuracy and both of the COVID-CT baseline (Zhao
    et al. 2020); its patience of 5 is exhausted by the sixth epoch and is a 6 here. A NaN is no improvement.

    Args:
        config: the early_stopping section; patience 0 never stops.
        metric: name of the figure that selects; its direction, and that of the watched, is told by the name.
    """

    def __init__(self, config: EarlyStoppingConfig, metric: str) -> None:
        self._config, self._metric = config, metric
        self._best: float | None = None
        self._watched = {name: _Watched() for name in config.watch or (metric,)}

    @property
    def best(self) -> float | None:
        """The best figure so far."""
        return self._best

    def update(self, figures: Mapping[str, float]) -> Verdict:
        """Judge the figures of one more epoch, by name."""
        value = figures[self._metric]
        improved = self._beats(self._metric, value, self._best, 0.0)
        if improved:
            self._best = value
        for name, watched in self._watched.items():
            self._look(name, watched, figures[name])
        patience = self._config.patience
        exhausted = tuple(name for name, watched in self._watched.items() if 0 < patience <= watched.bad_epochs)
        return Verdict(improved, len(exhausted) == len(self._watched), exhausted)

    def begin_anew(self) -> None:
        """Patience starts again, as after a drop of the learning rate; marks and averages stay."""
        for watched in self._watched.values():
            watched.bad_epochs = 0

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"best": self._best, "watched": {name: asdict(watched) for name, watched in self._watched.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`; a figure that is watched from now on starts without a past."""
        self._best = state["best"]
        past = state["watched"] if "watched" in state else {self._metric: _of_one(state)}
        for name in self._watched.keys() & past.keys():
            self._watched[name] = _Watched(**past[name])

    def _look(self, name: str, watched: _Watched, value: float) -> None:
        if math.isfinite(value):
            share = self._config.smoothing if watched.average is not None else 0.0
            watched.average = share * (watched.average or 0.0) + (1 - share) * value
        average = math.nan if watched.average is None or not math.isfinite(value) else watched.average
        if self._beats(name, average, watched.mark, self._config.min_delta):
            watched.mark, watched.bad_epochs = average, 0
        else:
            watched.bad_epochs += 1

    def _beats(self, name: str, value: float, other: float | None, margin: float) -> bool:
        if math.isnan(value):
            return False
        sign = -1.0 if lower_is_better(name) else 1.0
        return other is None or sign * (value - other) > margin


def _of_one(state: dict[str, Any]) -> dict[str, Any]:
    """What version 0.1.0 kept before figures were watched by name."""
    return {"average": state["mark"], "mark": state["mark"], "bad_epochs": state["bad_epochs"]}
