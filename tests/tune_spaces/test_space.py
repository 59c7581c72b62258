"""A space's trials: what is suggested, what a recipe is in it, and its grid."""

from __future__ import annotations

import itertools
import json
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import load_config, to_dict
from cluster.errors import InputError
from tests.tune_spaces.written import EVERYTHING, demo_layers, write_space
from tune_spaces.space import Space, overrides, value_at, values_layer
from xdist_train.config import Config, resolve_config

optuna.logging.set_verbosity(optuna.logging.WARNING)
_SPACE = write_space(EVERYTHING)
# `${` and `???` are OmegaConf's own.
_TEXTS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]) | st.sampled_from("\n\t=:#'\"")).filter(
    lambda text: "${" not in text and text != "???"
)


def _suggest(space: Space, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values and recorded parameters of a random trial."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    return space.suggest(trial), trial.params


def _follows_its_conditions(values: dict[str, Any]) -> bool:
    """EVERYTHING's conditions, said again in Python."""
    sgd = values["optim.name"] == "sgd"
    lr = values["optim.lr"]
    by_backbone = {
        "resnet18": 1e-2 <= lr <= 1.0 if sgd else 1e-4 <= lr <= 1e-2,
        "small_cnn": lr == 4e-3,
        "resnet50": 1e-4 <= lr <= 1e-3,
    }
    return (
        by_backbone[values["model.backbone"]]
        and [sgd, sgd, not sgd] == [f"optim.{name}" in values for name in ("momentum", "nesterov", "betas")]
        and ("loss.focal_gamma" in values) == (values.get("optim.nesterov") is False)
        and values["model.hidden"] in range(8, 129, 8)
        and (values["model.dropout"] in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
        and (values["model.dropout"] == 0.0 or values["model.hidden"] != 8)
        and values["train.accumulation_steps"] in (1, 2, 3, 4)
    )


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_suggested_values_keep_ranges_and_conditions(seed: int) -> None:
    """Whatever the sampler draws; keys of other cases are not there."""
    values, params = _suggest(_SPACE, seed)
    assert _follows_its_conditions(values)
    assert values == _SPACE.values_of(params)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_config_takes_suggested_values_bit_for_bit(seed: int) -> None:
    """As a layer, as `key=value`, and through JSON."""
    values, _ = _suggest(_SPACE, seed)
    config = resolve_config("demo", overrides(values))
    nested = to_dict(config)
    assert values == {key: value_at(nested, key) for key in values}
    assert [type(value) for value in values.values()] == [type(value_at(nested, key)) for key in values]
    assert config == load_config(Config, [*demo_layers(), values_layer(json.loads(json.dumps(values)), "trial")])


@settings(max_examples=60, deadline=None)
@given(_TEXTS, st.floats(min_value=5e-324, allow_infinity=False))
def test_overrides_carry_any_text_and_float(text: str, number: float) -> None:
    """Quotes, line ends, `=`, words that YAML reads as truth; the least float too."""
    config = resolve_config("demo", overrides({"data.uri": text, "optim.lr": number}))
    assert (text, number) == (config.data.uri, config.optim.lr)


def test_conditional_parameters_have_a_name_for_each_case() -> None:
    """Optuna refuses a name whose distribution changes within a study."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    names = set()
    for _ in range(60):
        trial = study.ask()
        _SPACE.suggest(trial)
        study.tell(trial, 0.0)
        names |= {name for name in trial.params if name.startswith("optim.lr")}
    assert names == {
        "optim.lr[model.backbone=resnet18,optim.name=sgd]",
        "optim.lr[model.backbone=resnet18,optim.name=*]",
        "optim.lr[model.backbone=small_cnn]",
        "optim.lr[model.backbone=*]",
    }


def test_values_come_in_the_order_of_dependence() -> None:
    """A key after those it depends on; else as in the file."""
    assert ["model.backbone", "optim.name", "optim.lr"] == list(_SPACE.specs)[:3]


def test_a_recipe_inside_is_located() -> None:
    """Its values by parameter, which a trial then takes."""
    space = write_space("optim.lr: {loguniform: [1.0e-3, 1.0e-2]}\ntrain.batch_size: {choice: [32, 64]}")
    located = space.locate(resolve_config("demo", []))
    assert located.params == {"optim.lr": 4e-3, "train.batch_size": "64"}
    assert located.values == {"optim.lr": 4e-3, "train.batch_size": 64}
    assert located.outside == {}
    study = optuna.create_study()
    study.enqueue_trial(dict(located.params))
    assert located.values == space.suggest(study.ask())


def test_what_lies_outside_is_said() -> None:
    """Beyond an end, no choice, and what depends on a key that lies outside; absent keys are neither."""
    space = write_space("""
optim.lr: {loguniform: [1.0e-5, 1.0e-3]}
model.backbone: {choice: [resnet18, resnet50]}
model.dropout: {by: model.backbone, cases: {resnet18: {uniform: [0.0, 0.5]}}}
optim.name: {choice: [adamw, sgd]}
optim.momentum: {by: optim.name, cases: {sgd: {uniform: [0.8, 0.9]}}}
optim.nesterov: {by: optim.name, cases: {sgd: {choice: [true, false]}}}
loss.focal_gamma: {by: optim.nesterov, default: 2.0, cases: {true: 1.0}}
train.batch_size: {randint: [32, 96], step: 32}
""")
    located = space.locate(resolve_config("demo", []))
    assert located.params == {"optim.name": "adamw", "train.batch_size": 64}
    assert located.outside == {
        "optim.lr": "0.004 is not in 1e-05..0.001",
        "model.backbone": "small_cnn is not in resnet18, resnet50",
        "model.dropout": "depends on model.backbone, which lies outside",
    }


def test_a_grid_has_every_combination_once() -> None:
    """Choices times points, under conditions."""
    space = write_space("""
optim.name: {choice: [adamw, sgd]}
optim.momentum: {by: optim.name, cases: {sgd: {uniform: [0.8, 0.9]}}}
train.accumulation_steps: {randint: [1, 2]}
""")
    found = [space.values_of(params) for params in space.grid(3)]
    adamw = [{"optim.name": "adamw", "train.accumulation_steps": steps} for steps in (1, 2)]
    sgd = [
        {"optim.name": "sgd", "optim.momentum": momentum, "train.accumulation_steps": steps}
        for momentum, steps in itertools.product([0.8, pytest.approx(0.85), 0.9], [1, 2])
    ]
    assert [*adamw, *sgd] == found


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4))
def test_a_grid_of_everything_is_unique_and_keeps_conditions(num_points: int) -> None:
    """No combination twice; as many as a count by hand gives."""
    found = [_SPACE.values_of(params) for params in _SPACE.grid(num_points, limit=100_000)]
    assert len(found) == len({json.dumps(values, sort_keys=True) for values in found})
    assert all(_follows_its_conditions(values) for values in found)
    n = num_points
    dropouts = len({values["model.dropout"] for values in found if values["model.hidden"] != 8})
    num_hidden = len({values["model.hidden"] for values in found})
    heads = 1 + (num_hidden - 1) * dropouts if n > 1 else dropouts
    steps = len({values["train.accumulation_steps"] for values in found})
    momenta = len({values["optim.momentum"] for values in found if "optim.momentum" in values})
    gammas = len({values["loss.focal_gamma"] for values in found if "loss.focal_gamma" in values})
    # Learning rates over the three networks, times what comes with the rule: betas, or momentum and nesterov.
    rules = (1 + n + n) * 2 + (1 + n + n) * momenta * (1 + gammas)
    assert rules * heads * steps == len(found)


def test_a_grid_that_is_too_large_is_refused() -> None:
    """With the points of each key, quickly even where they are billions."""
    text = "\n".join(f"augment.{name}: {{uniform: [0.0, 0.5]}}" for name in ("flip", "brightness", "contrast"))
    assert 8 == len(write_space(text).grid(2, limit=8))
    with pytest.raises(InputError, match="more than 7 combinations"):
        write_space(text).grid(2, limit=7)
    with pytest.raises(InputError) as caught:
        write_space(text).grid(10_000)
    assert str(caught.value) == (
        "file my.yaml: a grid with 10000 points a range has more than 10000 combinations (augment.flip 10000, "
        "augment.brightness 10000, augment.contrast 10000). Take fewer points, choices or keys, or search with "
        "sampler random or tpe."
    )


def test_the_digest_is_of_meaning_not_of_notation() -> None:
    """Order, sections and comments do not count; ends do."""
    one = write_space("optim.lr: {uniform: [0.001, 1]}\ntrain.seed: {randint: [0, 3]}")
    same = write_space("# note\ntrain: {seed: {randint: [0, 3]}}\noptim: {lr: {uniform: [1.0e-3, 1.0]}}")
    other = write_space("optim.lr: {uniform: [0.001, 2]}\ntrain.seed: {randint: [0, 3]}")
    assert one.digest == same.digest != other.digest
