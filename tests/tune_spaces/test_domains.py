"""Values and parameters of one key: inside the domain, on its steps, and the same both ways."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_spaces.domains import Choice, Domain, Range, label


@st.composite
def _ranges(draw: st.DrawFn) -> Range:
    """Ranges of every kind, those with steps too."""
    log, whole, stepped = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    unit = 1 if whole else draw(st.sampled_from([0.1, 0.25, 1e-3, 0.7]))
    first, step, count = draw(st.integers(1, 50)), draw(st.integers(1, 9)), draw(st.integers(0, 60))
    if whole:
        return Range(low=first, high=first + step * count, log=log, step=step if stepped else None)
    low, high = (float(f"{unit * k:.6g}") for k in (first, first + step * count))
    return Range(low=low, high=high, log=log, step=float(f"{unit * step:.6g}") if stepped else None)


class _Pick:
    """A trial that takes what it is told, as a share of the way from low to high."""

    def __init__(self, share: float) -> None:
        self._share = share

    def suggest_categorical(self, name: str, choices: Any, /) -> str:
        return str(choices[int(self._share * (len(choices) - 1))])

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return low + self._share * (high - low)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return low + int(self._share * ((high - low) // step)) * step


@given(_ranges(), st.floats(0, 1))
def test_a_value_is_in_the_range_on_a_step_and_of_its_type(domain: Range, share: float) -> None:
    """Also at the ends, and its own parameter leads back to it."""
    value = domain.suggest(_Pick(share), "x")
    assert domain.low <= value <= domain.high
    assert type(domain.low) is type(value)
    parameter = domain.parameter_of(value)
    assert parameter is not None
    assert value == domain.value_of(parameter)


@given(_ranges(), st.integers(1, 12))
def test_points_are_different_rising_and_from_end_to_end(domain: Range, num_points: int) -> None:
    """No more of them than asked for; a range with fewer values gives what it has."""
    points = domain.points(num_points)
    values = [float(domain.value_of(point)) for point in points]
    assert 1 <= len(points) <= num_points
    assert all(left < right for left, right in itertools.pairwise(values))
    if num_points > 1:
        assert [domain.low, domain.high] == [values[0], values[-1]]


@pytest.mark.parametrize(
    ("domain", "num_points", "points"),
    [
        (Range(low=0.0, high=1.0), 3, [0.0, 0.5, 1.0]),
        (Range(low=0.0, high=1.0), 1, [0.5]),
        (Range(low=0.0, high=0.3, step=0.1), 9, [0.0, 0.1, 0.2, 0.3]),
        (Range(low=1, high=4), 9, [1, 2, 3, 4]),
        (Range(low=16, high=64, step=16), 2, [16, 64]),
        (Range(low=1, high=64, log=True), 4, [1, 4, 16, 64]),
        (Range(low=2.0, high=8.0, log=True, step=0.5), 2, [2.0, 8.0]),
        (Choice(("a", [1, 2], 0.5, True)), 2, ["a", "[1, 2]", "0.5", "true"]),
    ],
)
def test_points(domain: Domain, num_points: int, points: list[Any]) -> None:
    """Even, in the logarithm where the range is; all choices, however few points."""
    assert points == domain.points(num_points)


@pytest.mark.parametrize(
    ("domain", "value"),
    [
        (Range(low=0.0, high=0.3, step=0.1), 0.25),
        (Range(low=0.0, high=0.3), 0.4),
        (Range(low=1, high=4), 2.0),
        (Range(low=0, high=1), True),
        (Range(low=0.0, high=1.0), "x"),
        (Choice((1, 2)), 3),
        (Choice((1, 2)), True),
    ],
)
def test_a_value_outside_has_no_parameter(domain: Domain, value: Any) -> None:
    """Between steps, beyond an end, of another type, or no choice."""
    assert domain.parameter_of(value) is None


def test_steps_are_decimal() -> None:
    """Three steps of 0.1 are 0.3, as a person writes it."""
    assert [0.1, 0.2, 0.3] == Range(low=0.1, high=0.3, step=0.1).points(5)


@pytest.mark.parametrize(
    ("case", "found"),
    [("a", "a"), (1, "1.0"), ("1.0", "1.0"), (False, "false"), ("false", "false"), ("[1, 2]", "[1, 2]"), (2, None),
     (True, None), (0, None)],
)  # fmt: skip
def test_a_case_names_a_value_as_people_write_it(case: object, found: str | None) -> None:
    """1 is 1.0, `no` is false, and lists go by their text; truth is no number."""
    assert found == Choice(("a", 1.0, False, [1, 2])).find(case)


@pytest.mark.parametrize(
    ("case", "found"),
    [(3, 3), ("3", 3), (4, None), (True, None), ("x", None), (3.5, None), (2_000_000_001, 2_000_000_001)],
)
def test_a_case_names_a_whole_number_of_any_range(case: object, found: int | None) -> None:
    """On a step, and at once where there are billions."""
    assert found == Range(low=1, high=2_000_000_001, step=2).find(case)
    assert Range(low=1.0, high=9.0).find(case) is None


@pytest.mark.parametrize("domain", [Range(low=0.1, high=0.7, log=True), Range(low=0.1, high=0.7, step=0.2)])
def test_a_parameter_beyond_an_end_by_a_bit_is_the_end(domain: Range) -> None:
    """Logarithm and exponential round."""
    values = [domain.value_of(math.nextafter(0.1, 0)), domain.value_of(math.nextafter(0.7, 1))]
    assert [0.1, 0.7] == values


def test_labels_tell_values_apart() -> None:
    """Text stands for itself, all else as JSON."""
    assert ["a", "1", "1.0", "true", "[0.7, 1.0]", "null"] == [label(v) for v in ("a", 1, 1.0, True, [0.7, 1.0], None)]
