"""What one key may take: a choice, or a range of numbers. Knows no config, no conditions and no sampler library.

A domain has two sides. Its *value* is what the config takes, any plain value. Its *parameter* is what a
sampler sees and a journal keeps: a text for a choice, a number for a range. `value_of` and `parameter_of`
lead from one to the other; steps are counted in decimal arithmetic, so that 3 x 0.1 is 0.3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

__all__ = ["Choice", "Domain", "Parameter", "Range", "Trial", "label"]

Parameter = str | int | float


class Trial(Protocol):
    """The part of `optuna.Trial` that a domain asks for a parameter."""

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> str: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...


def label(value: Any) -> str:
    """A plain value as one readable text; among values of one config key, equal texts are equal values."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Choice:
    """One of some values, in no order."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        """The value that a sampler picks."""
        return self.value_of(trial.suggest_categorical(name, self._labels))

    def value_of(self, parameter: Parameter) -> Any:
        """The value of a parameter that `suggest`, `points` or `parameter_of` gave."""
        return self.values[self._labels.index(str(parameter))]

    def parameter_of(self, value: Any) -> Parameter | None:
        """The parameter of a value, None where it is no choice."""
        text = label(value)
        return text if text in self._labels else None

    def points(self, num_points: int) -> list[Parameter]:
        """All choices, however many points a range has."""
        return list(self._labels)

    def must_be_possible(self) -> Sequence[Any]:
        """The values that a config must accept for the domain to be sound."""
        return self.values

    def candidates(self) -> Iterable[Any]:
        """All values, where a condition may depend on them."""
        return self.values

    def find(self, case: object) -> Parameter | None:
        """The parameter of the value that a case of a condition names, None where it names none."""
        return next((label(value) for value in self.values if _names(case, value)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; domains are equal where these are."""
        return {"choice": list(self.values)}

    def __str__(self) -> str:
        return ", ".join(label(value) for value in self.values)

    @property
    def _labels(self) -> list[str]:
        return [label(value) for value in self.values]


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where `low` and `high` are int."""

    low: float
    high: float
    log: bool = False
    """Drawn and spaced evenly in the logarithm."""
    step: float | None = None
    """Only low, low + step, low + 2 step, ..., high; 1 or more for whole numbers."""

    @property
    def whole(self) -> bool:
        """Whether the values are int."""
        return isinstance(self.low, int)

    def suggest(self, trial: Trial, name: str) -> float:
        """The value that a sampler picks.

        Optuna has no steps in logarithmic ranges: there the parameter is the value before rounding to a step.
        """
        if self.whole:
            step = 1 if self.log else int(self.step or 1)
            return self.value_of(trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log))
        float_step = None if self.log else self.step
        return self.value_of(trial.suggest_float(name, self.low, self.high, step=float_step, log=self.log))

    def value_of(self, parameter: Parameter) -> float:
        """The value of a parameter: on a step and inside the range, where rounding in logarithms leaves it by a bit."""
        number = min(max(type(self.low)(parameter), self.low), self.high)
        return number if self.step is None else self._at_step(round((number - self.low) / self.step))

    def parameter_of(self, value: Any) -> Parameter | None:
        """The parameter of a value, None where it is not in the range or between two steps."""
        if type(value) is not type(self.low) or not self.low <= value <= self.high or self.value_of(value) != value:
            return None
        return float(value) if not self.whole else int(value)

    def points(self, num_points: int) -> list[Parameter]:
        """Evenly spaced parameters from end to end, fewer where the range has no more; one is the middle."""
        step = self.step or (1 if self.whole else None)
        if step is not None and not self.log and self._num_steps(step) < num_points:
            return [self._at_step(k) for k in range(self._num_steps(step) + 1)]
        return list(dict.fromkeys(self.value_of(self._rounded(number)) for number in self._spaced(num_points)))

    def must_be_possible(self) -> Sequence[float]:
        """Both ends."""
        return [self.low, self.high]

    def candidates(self) -> Iterable[float]:
        """All whole numbers of the range; nothing for reals, which no condition may depend on."""
        return range(int(self.low), int(self.high) + 1, int(self.step or 1)) if self.whole else ()

    def find(self, case: object) -> Parameter | None:
        """The parameter of the whole number that a case of a condition names, None where it names none."""
        try:
            return None if isinstance(case, bool) else self.parameter_of(int(str(case)))
        except ValueError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; domains are equal where these are."""
        return {"range": [self.low, self.high], "log": self.log, "step": self.step}

    def __str__(self) -> str:
        return f"{self.low}..{self.high}" + (f" in steps of {self.step}" if self.step is not None else "")

    def _num_steps(self, step: float) -> int:
        return int((_decimal(self.high) - _decimal(self.low)) / _decimal(step))

    def _at_step(self, k: int) -> float:
        return type(self.low)(_decimal(self.low) + k * _decimal(self.step or 1))

    def _rounded(self, number: float) -> float:
        return round(number) if self.whole else number

    def _spaced(self, num_points: int) -> Iterator[float]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        back = math.exp if self.log else float
        if num_points == 1:
            yield back((low + high) / 2)
            return
        yield self.low
        yield from (back(low + (high - low) * k / (num_points - 1)) for k in range(1, num_points - 1))
        yield self.high


Domain = Choice | Range


def _decimal(number: float) -> Decimal:
    return Decimal(repr(number))


def _names(case: object, value: object) -> bool:
    """Whether a key of `cases`, which YAML reads as text, number or truth, names a value."""
    if isinstance(case, bool) or isinstance(value, bool):
        return case is value or case == label(value)
    return case == value or str(case) == label(value)
