"""The config gate: layers in order, and every mistake refused with its place and the nearest right name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from cluster.config import (
    Layer,
    convert_values,
    digest,
    dump_yaml,
    leaf_keys,
    load_config,
    nearest_key,
    parse_overrides,
    read_layer,
    to_dict,
)
from cluster.errors import InputError
from xdist_train.config import resolve_config


@dataclass(frozen=True, kw_only=True)
class _Optim:
    lr: float = 0.1
    name: Literal["sgd", "adam"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be above 0, not {self.lr}")


@dataclass(frozen=True, kw_only=True)
class _Train:
    epochs: int = 1
    uri: str = ""


@dataclass(frozen=True, kw_only=True)
class _Root:
    optim: _Optim = field(default_factory=_Optim)
    train: _Train = field(default_factory=_Train)


def _load(*overrides: str) -> _Root:
    return load_config(_Root, parse_overrides(overrides))


def test_later_layers_win() -> None:
    """defaults < recipe < file < command line."""
    recipe = Layer("recipe", {"optim": {"lr": 0.2}, "train": {"epochs": 2}})
    file = Layer("file", {"train": {"epochs": 3}})
    config = load_config(_Root, [recipe, file, *parse_overrides(["train.uri=s"])])
    assert _Root(optim=_Optim(lr=0.2), train=_Train(epochs=3, uri="s")) == config


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1", 1.0), (".5", 0.5)], ids=["exponent", "integer", "point"]
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    """`1e-3` is a float, which YAML 1.1 alone would call text."""
    assert value == _load(f"optim.lr={text}").optim.lr


@pytest.mark.parametrize(
    ("text", "word"), [("yes", "yes"), ("no", "no"), ("off", "no"), ("auto", "auto"), ("'yes'", "yes")]
)
def test_yes_and_no_are_words_where_a_key_takes_them(text: str, word: str) -> None:
    """YAML reads them as truth."""
    assert word == resolve_config("demo", [f"scale.use_gpu={text}"]).scale.use_gpu


def test_values_may_hold_an_equals_sign() -> None:
    """Only the first `=` separates."""
    assert _load("train.uri=a=b").train.uri == "a=b"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lrr=1", ["unknown key 'optim.lrr'", "'optim.lr'"]),
        ("lr=1", ["unknown key 'lr'", "'optim.lr'"]),
        ("optimizer.lr=1", ["unknown key", "'optim.lr'"]),
        ("zzz.q=1", ["Sections are: optim, train"]),
        ("optim.lr=fast", ["optim.lr", "fast"]),
        ("optim.name=adamm", ["optim.name", "adamm", "sgd"]),
        ("optim.lr=-1", ["optim.lr must be above 0", "-1"]),
        ("optim.betas=[1]", ["optim.betas"]),
        ("train.epochs=1.5", ["train.epochs", "1.5"]),
        ("train=5", ["'train' is a section", "train.epochs"]),
        ("train.epochs", ["key=value"]),
        ("=3", ["key=value"]),
        ("train.uri=[1", ["train.uri=[1"]),
    ],
)
def test_mistakes_are_refused_with_the_right_name(override: str, parts: list[str]) -> None:
    """The text names the place, the key, the value and, for a misspelt key, the nearest right one."""
    with pytest.raises(InputError) as caught:
        _load(override)
    assert [part for part in ["command line", *parts] if part not in str(caught.value)] == []


def test_an_impossible_value_names_the_layer_that_set_it() -> None:
    """The recipe set it, the command line set something else."""
    layers = [Layer("recipe bad", {"optim": {"lr": 0}}), *parse_overrides(["train.epochs=2"])]
    with pytest.raises(InputError, match=r"recipe bad: optim\.lr must be above 0"):
        load_config(_Root, layers)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "\x00"], ids=["list", "torn", "binary"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Not YAML, or not `section: {key: value}`."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml"):
        read_layer(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The path is in the text."""
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_layer(tmp_path / "none.yaml")


def test_a_dumped_config_loads_to_the_same(tmp_path: Path) -> None:
    """`config.yaml` of a run is a file that the program takes back."""
    config = _load("optim.lr=0.003", "optim.betas=[0.8,0.9]", "train.uri='x: y'")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert config == load_config(_Root, [read_layer(path)])


def test_digest_ignores_the_order_of_keys() -> None:
    """Equal values, equal digest; another value, another digest."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_to_dict_holds_plain_values() -> None:
    """Tuples become lists, sections dictionaries."""
    assert to_dict(_Root())["optim"] == {"lr": 0.1, "name": "sgd", "betas": [0.9, 0.999]}


def test_converted_values_have_the_types_of_the_schema() -> None:
    """By dotted key; what a section checks as a whole is not asked here."""
    layer = Layer("file x", {"optim": {"lr": -1, "betas": [0, 1]}, "train": {"uri": 3}})
    values = convert_values(_Root, layer)
    assert values == {"optim.lr": -1.0, "optim.betas": [0.0, 1.0], "train.uri": "3"}
    assert [float, float] == [type(value) for value in values["optim.betas"]]


@pytest.mark.parametrize(
    ("values", "text"),
    [({"optim": {"lr": "x"}}, "file x: optim.lr: Value 'x'"), ({"optim": {"lrr": 1}}, "Did you mean 'optim.lr'?")],
)
def test_values_that_do_not_convert_are_refused(values: dict[str, object], text: str) -> None:
    """As `load_config` refuses them."""
    with pytest.raises(InputError) as caught:
        convert_values(_Root, Layer("file x", values))
    assert text in str(caught.value)


def test_keys_of_a_schema_are_dotted() -> None:
    """Values, not sections; the nearest one is named."""
    keys = leaf_keys(_Root)
    assert ["optim.lr", "optim.name", "optim.betas", "train.epochs", "train.uri"] == keys
    assert " Did you mean 'train.epochs'?" == nearest_key("train.epoch", keys)
