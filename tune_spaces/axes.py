"""A key's axis: all that it takes over its cases as one domain, and where a value lies on it. Pure; draws nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tune_spaces.domains import Choice, Domain, Range, label
from tune_spaces.space import Spec, leaves

__all__ = ["place", "ticks", "union"]

_NUM_TICKS = 5
# Ticks closer than this share of the axis would be written over each other.
_LEAST_GAP = 0.1


def union(spec: Spec) -> Domain:
    """What a key takes in all of its cases together.

    Choices only: their values, each once, numbers in their order. With a range among them: one range over all numbers,
    logarithmic where one of them is, and with a step only where all cases have the same range. (A text beside a range
    has no place on that.)
    """
    domains = [leaf.domain for _, leaf in leaves(spec)]
    ranges = [domain for domain in domains if isinstance(domain, Range)]
    if not ranges:
        return Choice(_in_order([value for domain in domains for value in domain.must_be_possible()]))
    if all(domain == ranges[0] for domain in domains):
        return ranges[0]
    numbers = [value for domain in domains for value in domain.must_be_possible() if _is_number(value)]
    whole = all(isinstance(number, int) for number in numbers)
    low, high = (number if whole else float(number) for number in (min(numbers), max(numbers)))
    return Range(low=low, high=high, log=low > 0 and any(domain.log for domain in ranges))


def place(domain: Domain, value: Any) -> float | None:
    """Where a value lies on a domain's axis, 0..1 from the first or lowest to the last or highest; None if nowhere."""
    if isinstance(domain, Choice):
        labels = [label(choice) for choice in domain.values]
        text = label(value)
        return _share(labels.index(text), 0, len(labels) - 1) if text in labels else None
    if not _is_number(value) or not domain.low <= value <= domain.high:
        return None
    return _share(*map(math.log if domain.log else float, (value, domain.low, domain.high)))


def ticks(domain: Domain) -> list[tuple[float, str]]:
    """Places on a domain's axis with what they are: all choices; ends of a range and round numbers between them."""
    if isinstance(domain, Choice):
        marks = [(place(domain, value), label(value)) for value in domain.values]
        return [(at, text) for at, text in marks if at is not None]
    ends = [domain.low, domain.high] if domain.low < domain.high else [domain.low]
    inner = _decades(domain) if domain.log else domain.points(_NUM_TICKS)
    found: list[tuple[float, str]] = []
    for number in [*ends, *inner]:
        at = place(domain, number)
        if at is not None and all(abs(at - other) >= _LEAST_GAP for other, _ in found):
            found.append((at, f"{number:.4g}"))
    return sorted(found)


def _in_order(values: Sequence[Any]) -> tuple[Any, ...]:
    """Each value once, numbers sorted."""
    once = list({label(value): value for value in values}.values())
    return tuple(sorted(once) if all(_is_number(value) for value in once) else once)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _share(number: float, low: float, high: float) -> float:
    return (number - low) / (high - low) if high > low else 0.5


def _decades(domain: Range) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(domain.low)), math.floor(math.log10(domain.high)) + 1)]
