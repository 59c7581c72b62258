"""Axes: what a key takes over its cases, and where values lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tune_spaces.written import EVERYTHING, write_space
from tune_spaces.axes import place, ticks, union
from tune_spaces.domains import Choice, Domain, Range

_SPACE = write_space(EVERYTHING)


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        # 1e-4..1e-3 evenly, 1e-4..1e-2 and 1e-2..1 in logarithms, 4e-3 alone.
        ("optim.lr", Range(low=1e-4, high=1.0, log=True)),
        ("model.dropout", Range(low=0.0, high=0.5)),
        ("optim.momentum", Range(low=0.8, high=0.98, step=0.03)),
        ("optim.name", Choice(("adamw", "sgd"))),
        ("optim.betas", Choice(([0.9, 0.999], [0.8, 0.99]))),
    ],
)
def test_a_key_has_one_axis_over_its_cases(key: str, domain: Domain) -> None:
    """The widest range, logarithmic where one of them is; choices each once."""
    assert domain == union(_SPACE.specs[key])


def test_numbers_of_several_cases_are_in_order() -> None:
    """Cases may name them in any."""
    space = write_space(
        "optim.name: {choice: [sgd, adamw]}\nmodel.dropout: {by: optim.name, cases: {sgd: 0.4, adamw: 0}}"
    )
    assert Choice((0.0, 0.4)) == union(space.specs["model.dropout"])


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.floats(0, 1), st.booleans())
def test_places_keep_the_order_of_values(one: float, other: float, share: float, log: bool) -> None:
    """The ends are 0 and 1, and all that lies between lies between."""
    domain = Range(low=min(one, other), high=max(one, other), log=log)
    value = min(max(domain.low + share * (domain.high - domain.low), domain.low), domain.high)
    at = place(domain, value)
    assert at is not None
    assert -1e-9 <= at <= 1 + 1e-9
    if domain.low < domain.high:
        assert (0.0, 1.0) == (place(domain, domain.low), place(domain, domain.high))


def test_a_logarithmic_axis_is_even_in_the_logarithm() -> None:
    """So its middle is the geometric one."""
    assert 0.5 == pytest.approx(place(Range(low=1e-4, high=1e-2, log=True), 1e-3))


@pytest.mark.parametrize("value", [0.05, 11.0, "0.5", None, True])
def test_what_is_not_on_an_axis_has_no_place(value: object) -> None:
    """None, and never an end."""
    assert place(Range(low=0.1, high=10.0), value) is None
    assert place(Choice(("sgd", "adamw")), value) is None


def test_ticks_say_ends_and_round_numbers() -> None:
    """Powers of ten in a logarithm, steps where there are few, and none over another."""
    assert ["1e-05", "0.0001", "0.001", "0.03"] == [
        text for _, text in ticks(Range(low=1e-5, high=3e-2, log=True)) if text != "0.01"
    ]
    assert ["0", "0.25", "0.5", "0.75", "1"] == [text for _, text in ticks(Range(low=0.0, high=1.0, step=0.25))]
    assert [(0.0, "sgd"), (1.0, "adamw")] == ticks(Choice(("sgd", "adamw")))
    assert ["3"] == [text for _, text in ticks(Range(low=3.0, high=3.0))]
