"""A search space: which config keys a search varies, over what, and under which conditions. Pure; knows no sampler.

`Space` is one walk over its keys, in an order in which each key comes after those that it depends on. At each key
that exists under the values picked so far, something picks: a sampler (`suggest`), a journal (`values_of`), the
recipe (`locate`), or every point in turn (`grid`).

A key whose range depends on another's value has one parameter name a case, such as
`optim.lr[model.backbone=resnet50]` (`*` is the default case), since Optuna holds that a name has one distribution in
a study and TPE must not learn one case's figures from another's. Values carry the plain key.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.config import Layer, digest, to_dict
from cluster.errors import InputError
from tune_spaces.domains import Domain, Parameter, Trial, label

__all__ = [
    "Condition",
    "Conditions",
    "Leaf",
    "Located",
    "Space",
    "Spec",
    "leaves",
    "overrides",
    "value_at",
    "values_layer",
]

_MOST_COMBINATIONS = 10_000


@dataclass(frozen=True)
class Leaf:
    """What a key takes in one case."""

    name: str
    """The parameter's name, unique in the space."""
    domain: Domain

    def to_dict(self) -> dict[str, Any]:
        """Plain values; leaves are equal where these are."""
        return self.domain.to_dict()


@dataclass(frozen=True)
class Condition:
    """What a key takes by another key's value; nothing at all in cases that are not named, without a default."""

    by: str
    cases: Mapping[str, Spec]
    """By the label of the other key's value."""
    default: Spec | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; conditions are equal where these are."""
        cases = {case: spec.to_dict() for case, spec in self.cases.items()}
        return {"by": self.by, "cases": cases, "default": self.default and self.default.to_dict()}

    def branches(self) -> Iterator[tuple[str | None, Spec]]:
        """Each case by its label, and the default as None."""
        yield from self.cases.items()
        if self.default is not None:
            yield None, self.default


Spec = Leaf | Condition
Conditions = tuple[tuple[Condition, str | None], ...]


def leaves(spec: Spec, path: Conditions = ()) -> Iterator[tuple[Conditions, Leaf]]:
    """All leaves of a key, each with the conditions and cases that lead to it."""
    if isinstance(spec, Leaf):
        yield path, spec
        return
    for case, branch in spec.branches():
        yield from leaves(branch, (*path, (spec, case)))


@dataclass(frozen=True)
class Located:
    """Where a config lies in a space."""

    params: dict[str, Parameter]
    """Its parameters by name, for the keys that lie inside: what `study.enqueue_trial` takes."""
    values: dict[str, Any]
    """The same as values by key."""
    outside: dict[str, str]
    """Keys whose value no trial can have, with the reason; a sampler picks theirs."""


@dataclass(frozen=True)
class Space:
    """A checked search space; `tune_spaces.space_file.read_space` makes one."""

    source: str
    """Where it was read from, for errors."""
    specs: Mapping[str, Spec] = field(hash=False)
    """By dotted key, each after the keys that it depends on."""

    @functools.cached_property
    def digest(self) -> str:
        """Equal for spaces with the same trials, whatever their files' notation, comments and order."""
        return digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What each key takes, as plain values."""
        return {key: spec.to_dict() for key, spec in self.specs.items()}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The values of a trial by dotted key, asked of a sampler key by key (define-by-run)."""
        return self.walk(lambda _, leaf: leaf.domain.suggest(trial, leaf.name))

    def values_of(self, params: Mapping[str, Parameter]) -> dict[str, Any]:
        """The values of a trial by dotted key, from the parameters that it was recorded with.

        Raises:
            KeyError: a parameter is missing: the record ended before the trial was complete.
        """
        return self.walk(lambda _, leaf: leaf.domain.value_of(params[leaf.name]))

    def locate(self, config: object) -> Located:
        """Where a resolved config (the recipe's own values) lies in the space."""
        nested = to_dict(config)
        found = Located({}, {}, {})
        for key, spec in self.specs.items():
            end = _follow(spec, found.values)
            if isinstance(end, Leaf):
                _locate(key, end, value_at(nested, key), found)
            elif end is not None and end.by in found.outside:
                found.outside[key] = f"depends on {end.by}, which lies outside"
        return found

    def grid(self, num_points: int = 3, limit: int = _MOST_COMBINATIONS) -> list[dict[str, Parameter]]:
        """All combinations of choices and of `num_points` points a range, each once, as parameters.

        Points lie evenly from end to end, in the logarithm where the range is logarithmic. The last key moves first.

        Raises:
            InputError: more than `limit` combinations.
        """
        found: list[dict[str, Parameter]] = []
        for params in self._combinations(list(self.specs.items()), {}, {}, num_points):
            if len(found) == limit:
                raise InputError(self._too_many(num_points, limit))
            found.append(params)
        return found

    def walk(self, pick: Callable[[str, Leaf], Any]) -> dict[str, Any]:
        """The values by key, `pick` asked for each key that exists under the values before it."""
        values: dict[str, Any] = {}
        for key, spec in self.specs.items():
            end = _follow(spec, values)
            if isinstance(end, Leaf):
                values[key] = pick(key, end)
        return values

    def _combinations(
        self, specs: list[tuple[str, Spec]], params: dict[str, Parameter], values: dict[str, Any], num_points: int
    ) -> Iterator[dict[str, Parameter]]:
        if not specs:
            yield params
            return
        (key, spec), rest = specs[0], specs[1:]
        end = _follow(spec, values)
        if not isinstance(end, Leaf):
            yield from self._combinations(rest, params, values, num_points)
            return
        for point in end.domain.points(num_points):
            value = end.domain.value_of(point)
            yield from self._combinations(rest, params | {end.name: point}, values | {key: value}, num_points)

    def _too_many(self, num_points: int, limit: int) -> str:
        sizes = {
            key: max(len(leaf.domain.points(num_points)) for _, leaf in leaves(spec))
            for key, spec in self.specs.items()
        }
        factors = ", ".join(f"{key} {size}" for key, size in sizes.items())
        return (
            f"{self.source}: a grid with {num_points} points a range has more than {limit} combinations ({factors}). "
            "Take fewer points, choices or keys, or search with sampler random or tpe."
        )


def overrides(values: Mapping[str, Any]) -> list[str]:
    """A trial's values as `key=value` of the command line; a config resolved with them has exactly these values."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def values_layer(values: Mapping[str, Any], source: str) -> Layer:
    """A trial's values as a layer of a config; a config loaded with it last has exactly these values."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        functools.reduce(lambda at, section: at.setdefault(section, {}), sections, nested)[name] = value
    return Layer(source, nested)


def _follow(spec: Spec, values: Mapping[str, Any]) -> Leaf | Condition | None:
    """The leaf under these values; None where the case has none; the condition whose key has no value."""
    end: Spec | None = spec
    while isinstance(end, Condition):
        if end.by not in values:
            return end
        end = end.cases.get(label(values[end.by]), end.default)
    return end


def _locate(key: str, leaf: Leaf, value: Any, found: Located) -> None:
    param = leaf.domain.parameter_of(value)
    if param is None:
        found.outside[key] = f"{label(value)} is not in {leaf.domain}"
    else:
        found.params[leaf.name] = param
        found.values[key] = value


def value_at(nested: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in a config as nested plain values."""
    return functools.reduce(lambda at, name: at[name], key.split("."), nested)
