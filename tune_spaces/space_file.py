"""Reading a search space from YAML, and every check that can be made before a trial starts.

A space names config keys, dotted or in sections, and what each may take:

    model.backbone: {choice: [resnet50, convnext_tiny]}
    optim:
      lr:                                          # by another key's value
        by: model.backbone
        cases:
          resnet50: {loguniform: [1.0e-4, 3.0e-3]}
        default: {loguniform: [1.0e-5, 1.0e-3]}    # all other backbones
      weight_decay: {loguniform: [1.0e-3, 0.3]}
      momentum:                                    # no default: only trials with sgd have this key
        by: optim.name
        cases: {sgd: {uniform: [0.8, 0.99]}}
      name: {choice: [sgd, adamw]}
    augment.crop_scale: {choice: [[0.7, 1.0], [0.9, 1.0]]}
    loss.label_smoothing: {uniform: [0.0, 0.2], step: 0.05}
    train.accumulation_steps: {randint: [1, 8]}

| kind         | takes                                                                                             |
|--------------|---------------------------------------------------------------------------------------------------|
| `choice`     | one of a list of any config values                                                                |
| `uniform`    | a real number from low to high                                                                    |
| `loguniform` | the same, evenly in its logarithm                                                                 |
| `randint`    | a whole number from low to high, both included                                                    |
| `lograndint` | the same, evenly in its logarithm                                                                 |
| `step`       | beside any of the ranges: only low, low + step, ..., high                                         |
| `by`         | with `cases` and `default`, what a key takes by the value of another; a case may be a condition   |
|              | again, or a plain value, which is then the only one. Without a case and a default, and where the  |
|              | other key itself is not there, the key is not varied and keeps the recipe's value                 |

A condition may depend on a choice or on whole numbers. Keys may come in any order.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.config import Layer, convert_values, leaf_keys, load_config, nearest_key, read_layer, to_dict
from cluster.errors import InputError
from tune_spaces.domains import Choice, Range, label
from tune_spaces.space import Condition, Conditions, Leaf, Located, Space, Spec, leaves, value_at, values_layer
from xdist_train.config import Config

__all__ = ["build_space", "read_space", "samples", "space_names"]

_KINDS = {
    # kind: (whole numbers, logarithmic)
    "uniform": (False, False),
    "loguniform": (False, True),
    "randint": (True, False),
    "lograndint": (True, True),
}
_WORDS = ["choice", *_KINDS, "by"]
_EXAMPLE = "optim.lr: {loguniform: [1.0e-5, 1.0e-2]}"
# What a key takes, by the type of its default.
_NOUNS = {
    bool: "true or false (choice)",
    int: "whole numbers (randint or lograndint)",
    float: "real numbers (uniform or loguniform, with a step for few of them)",
    str: "text (choice)",
    list: "lists (choice)",
}
# What makes figures comparable, and what a search decides itself.
_SAME_SECTIONS = ("run", "data", "storage", "evaluate", "cam")
_SAME_KEYS = ("train.metric",)
# Values of a large range of whole numbers that are looked at.
_MOST_COMPARED = 1000
# The source of the layer with a trial's values, while they are tried against the config.
_TRIED = "tried"


def space_names() -> list[str]:
    """Spaces that ship with the program."""
    folder = resources.files("tune_spaces") / "spaces"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_space(space: str, layers: Sequence[Layer]) -> Space:
    """A space by shipped name, or from a YAML file by path, checked against the config that it varies.

    Args:
        space: name or path.
        layers: the recipe and what is laid over it; trials come on top.

    Raises:
        InputError: unknown space, a mistake in the file, or a value that the config refuses.
    """
    if space in space_names():
        path = Path(str(resources.files("tune_spaces") / "spaces" / f"{space}.yaml"))
        return build_space(read_layer(path, f"space {space}"), layers)
    path = Path(space)
    if not path.suffix and not path.exists():
        raise InputError(
            f"unknown space {space!r}.{_nearest(space, space_names())} Spaces are: {', '.join(space_names())}; "
            "or give the path of a YAML file."
        )
    return build_space(read_layer(path), layers)


def build_space(file: Layer, layers: Sequence[Layer]) -> Space:
    """A space from the values of its file, checked.

    Raises:
        InputError: see `read_space`.
    """
    space = Space(file.source, _Reader(file).read())
    _refuse_impossible_values(space, layers)
    return space


class _Reader:
    """One reading of a file: each key is read after those that it depends on."""

    def __init__(self, file: Layer) -> None:
        self._source = file.source
        self._known = leaf_keys(Config)
        self._nodes: dict[str, Any] = {}
        for key, node in self._entries(file.values, ""):
            if key in self._nodes:
                raise self._error(key, "is given twice, dotted and in its section. Keep one of them")
            self._nodes[key] = node
        self._specs: dict[str, Spec] = {}
        self._reading: list[str] = []

    def read(self) -> dict[str, Spec]:
        if not self._nodes:
            raise InputError(f"{self._source}: the space is empty. Give a key and what it may take, e.g. {_EXAMPLE}.")
        for key in self._nodes:
            self._key(key)
        return self._specs

    def _entries(self, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        sections = {key.rpartition(".")[0] for key in self._known}
        for name, node in values.items():
            key = f"{prefix}{name}"
            if key in self._known:
                yield key, node
            elif key not in sections:
                near = ("." not in key and _nearest(key, sections)) or nearest_key(key, self._known)
                raise InputError(f"{self._source}: unknown key {key!r}.{near}")
            elif not isinstance(node, Mapping):
                raise self._error(key, f"is a section. Give keys of it, e.g. {_EXAMPLE}")
            else:
                yield from self._entries(node, f"{key}.")

    def _key(self, key: str) -> Spec:
        if key.partition(".")[0] in _SAME_SECTIONS or key in _SAME_KEYS:
            raise self._error(key, "is the same in all trials, which could not be compared otherwise. Take it out")
        if key in self._reading:
            cycle = " -> ".join([*self._reading[self._reading.index(key) :], key])
            raise self._error(key, f"depends on itself ({cycle}). Take one `by` out")
        if key not in self._specs:
            self._reading.append(key)
            if not isinstance(self._nodes[key], Mapping):
                raise self._error(key, f"needs what it may take, e.g. {_EXAMPLE}, not {self._nodes[key]!r}")
            self._specs[key] = self._spec(key, self._nodes[key], ())
            self._reading.pop()
        return self._specs[key]

    def _spec(self, key: str, node: Any, path: tuple[str, ...]) -> Spec:
        """Args: path: `key=value` of each condition that leads here."""
        if not isinstance(node, Mapping):
            return Leaf(_parameter_name(key, path), self._choice(key, [node]))
        kinds = [word for word in _WORDS if word in node]
        if len(kinds) != 1:
            raise self._error(key, self._not_one_kind(node, kinds))
        kind = kinds[0]
        self._refuse_other_words(key, node, [kind, *{"choice": [], "by": ["cases", "default"]}.get(kind, ["step"])])
        if kind == "by":
            return self._condition(key, node, path)
        domain = self._choice(key, node["choice"]) if kind == "choice" else self._range(key, kind, node)
        return Leaf(_parameter_name(key, path), domain)

    def _not_one_kind(self, node: Mapping[str, Any], kinds: list[str]) -> str:
        if kinds:
            return f"has more than one kind: {', '.join(kinds)}. Keep one of them"
        words = ", ".join(repr(str(word)) for word in node) or "nothing"
        near = next((text for word in node if (text := _nearest(str(word), _WORDS))), "")
        return f"has {words} where one kind belongs.{near} Kinds are: {', '.join(_WORDS)}"

    def _refuse_other_words(self, key: str, node: Mapping[str, Any], words: list[str]) -> None:
        for word in node:
            if word not in words:
                near = _nearest(str(word), words)
                raise self._error(key, f"{word!r} does not go with {words[0]}.{near} It takes: {', '.join(words)}")

    def _choice(self, key: str, values: Any) -> Choice:
        if not isinstance(values, list) or not values:
            raise self._error(key, f"a choice needs a list of values, e.g. choice: [1, 2], not {values!r}")
        plain = [self._converted(key, value) for value in values]
        twice = next((value for k, value in enumerate(plain) if label(value) in map(label, plain[:k])), None)
        if twice is not None:
            raise self._error(key, f"the choice has {label(twice)} twice. Keep one of them")
        return Choice(tuple(plain))

    def _converted(self, key: str, value: Any) -> Any:
        layer = values_layer({key: value}, self._source)
        if isinstance(value, Mapping):
            raise self._error(key, f"takes values, not sections such as {dict(value)!r}")
        return convert_values(Config, layer)[key]

    def _range(self, key: str, kind: str, node: Mapping[str, Any]) -> Range:
        whole, log = _KINDS[kind]
        low, high = self._ends(key, kind, node[kind])
        step = self._step(key, kind, node["step"], low, high) if "step" in node else None
        number: Callable[[Any], float] = int if whole else float
        found = Range(low=number(low), high=number(high), log=log, step=None if step is None else number(step))
        takes = type(value_at(to_dict(Config()), key))
        if takes is not number:
            raise self._error(key, f"{kind} does not fit, since this key takes {_NOUNS[takes]}")
        return found

    def _ends(self, key: str, kind: str, ends: Any) -> tuple[Any, Any]:
        if not isinstance(ends, list) or len(ends) != 2 or not all(_is_number(end) for end in ends):
            raise self._error(key, f"{kind} needs two numbers, e.g. {kind}: [1, 8], not {ends!r}")
        low, high = ends
        whole, log = _KINDS[kind]
        if whole and not all(isinstance(end, int) for end in ends):
            raise self._error(key, f"{kind} needs whole numbers, not {ends!r}")
        if low > high:
            raise self._error(key, f"{kind}: low {low} is above high {high}. Write [{high}, {low}]")
        if log and not low > 0:
            raise self._error(key, f"{kind}: low {low} has no logarithm. Take a low above 0, or {kind[3:]}")
        return low, high

    def _step(self, key: str, kind: str, step: Any, low: Any, high: Any) -> Any:
        whole, _ = _KINDS[kind]
        if not _is_number(step) or not step > 0 or (whole and not isinstance(step, int)):
            raise self._error(key, f"step must be a {'whole ' if whole else ''}number above 0, not {step!r}")
        exact_low, exact_step = Decimal(repr(low)), Decimal(repr(step))
        count, rest = divmod(Decimal(repr(high)) - exact_low, exact_step)
        if rest:
            nearest = f"{exact_low + count * exact_step} or {exact_low + (count + 1) * exact_step}"
            raise self._error(key, f"{kind}: steps of {step} from {low} do not reach {high}. Take {nearest} as high")
        return step

    def _condition(self, key: str, node: Mapping[str, Any], path: tuple[str, ...]) -> Condition:
        by, cases = node["by"], node.get("cases")
        if not isinstance(cases, Mapping) or not cases:
            raise self._error(key, f"by: {by} needs cases, e.g. cases: {{resnet50: {{loguniform: [1.0e-4, 1.0e-2]}}}}")
        if not isinstance(by, str) or by not in self._nodes:
            near = _nearest(str(by), list(self._nodes))
            raise self._error(key, f"depends on {by!r}, which is not in the space.{near} Add it, or take `by` out")
        other = self._key(by)
        if not any(True for _ in _candidates(other)):
            raise self._error(key, f"depends on {by}, which takes any real number; a condition needs values to name")
        specs: dict[str, Spec] = {}
        for case, branch in cases.items():
            text = self._case(key, by, other, case)
            if text in specs:
                raise self._error(key, f"case {text} of {by} is given twice. Keep one of them")
            specs[text] = self._spec(key, branch, (*path, f"{by}={text}"))
        default = self._spec(key, node["default"], (*path, f"{by}=*")) if "default" in node else None
        return Condition(by, specs, default)

    def _case(self, key: str, by: str, other: Spec, case: object) -> str:
        for _, leaf in leaves(other):
            found = leaf.domain.find(case)
            if found is not None:
                return label(leaf.domain.value_of(found))
        domains = list(dict.fromkeys(str(leaf.domain) for _, leaf in leaves(other)))
        near = _nearest(str(case), [label(value) for value in islice(_candidates(other), _MOST_COMPARED)])
        raise self._error(key, f"case {case!r}: {by} never takes it.{near} It takes: {'; '.join(domains)}")

    def _error(self, key: str, text: str) -> InputError:
        return InputError(f"{self._source}: {key}: {text}.")


def _refuse_impossible_values(space: Space, layers: Sequence[Layer]) -> None:
    """Every choice, both ends of every range, in every case: each in a whole configuration.

    What else the configuration needs is the recipe's own where it lies in the space, else the first that is there:
    some values are possible only beside others (`loss.class_weights=list` with its weights).
    """
    for key, values in samples(space, space.locate(load_config(Config, layers))):
        _try(space, key, values, layers)


def samples(space: Space, own: Located) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole trials that hold, all together, every choice and both ends of every range in every case.

    Args:
        own: where the recipe lies; its values stand beside the one that a sample is for.

    Yields:
        The key that the sample is for, and the trial's values.
    """
    for key, spec in space.specs.items():
        for conditions, leaf in leaves(spec):
            forced = next(_reach(space, conditions, {}), None)
            if forced is None:
                _refuse_unreachable(space, key, conditions)
                continue
            for value in leaf.domain.must_be_possible():
                yield key, _complete(space, {**forced, key: value}, own)


def _try(space: Space, key: str, values: Mapping[str, Any], layers: Sequence[Layer]) -> None:
    try:
        load_config(Config, [*layers, values_layer(values, _TRIED)])
    except InputError as error:
        reason = str(error).removeprefix(f"{_TRIED}: ").removeprefix("configuration: ")
        # The key at fault begins the reason; it may be another one of the trial.
        named = reason.partition(" ")[0]
        key = named if named in values else key
        raise InputError(f"{space.source}: {key}={label(values[key])} is refused: {reason}") from None


def _complete(space: Space, forced: Mapping[str, Any], own: Located) -> dict[str, Any]:
    """A trial with the forced values."""

    def pick(key: str, leaf: Leaf) -> Any:
        for values in (forced, own.values):
            if key in values and leaf.domain.parameter_of(values[key]) is not None:
                return values[key]
        return leaf.domain.must_be_possible()[0]

    return space.walk(pick)


def _reach(space: Space, conditions: Conditions, forced: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Values, the forced ones among them, under which all conditions hold: every way there is."""
    if not conditions:
        yield forced
        return
    (condition, case), rest = conditions[0], conditions[1:]
    if condition.by in forced:
        if _is_in_case(forced[condition.by], condition, case):
            yield from _reach(space, rest, forced)
        return
    for way_there, leaf in leaves(space.specs[condition.by]):
        for value in _values_in_case(leaf, condition, case):
            for way in _reach(space, way_there, forced):
                yield from _reach(space, rest, {**way, condition.by: value})


def _is_in_case(value: Any, condition: Condition, case: str | None) -> bool:
    """Whether a value of the other key leads to a case; None is the default."""
    return label(value) == case if case is not None else label(value) not in condition.cases


def _values_in_case(leaf: Leaf, condition: Condition, case: str | None) -> Iterator[Any]:
    if case is None:
        some = islice(leaf.domain.candidates(), len(condition.cases) + _MOST_COMPARED)
        yield from (value for value in some if _is_in_case(value, condition, case))
        return
    found = leaf.domain.find(case)
    if found is not None:
        yield leaf.domain.value_of(found)


def _refuse_unreachable(space: Space, key: str, conditions: Conditions) -> None:
    """A default that no value is left for may stand; a case that can never happen is a mistake."""
    if all(case is not None for _, case in conditions):
        cases = " and ".join(f"{condition.by}={case}" for condition, case in conditions)
        raise InputError(f"{space.source}: {key}: the case {cases} can never happen. Take it out.")


def _parameter_name(key: str, path: tuple[str, ...]) -> str:
    return f"{key}[{','.join(path)}]" if path else key


def _candidates(spec: Spec) -> Iterator[Any]:
    for _, leaf in leaves(spec):
        yield from leaf.domain.candidates()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _nearest(word: str, words: Collection[str]) -> str:
    close = difflib.get_close_matches(word, sorted(words), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
