"""Reading a space: what ships loads, and every mistake is refused with its file, key and the nearest right name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from cluster.errors import InputError
from tests.tune_spaces.written import demo_layers, write_space
from tune_spaces.space import Leaf, leaves
from tune_spaces.space_file import read_space, space_names
from xdist_train.config import read_recipe, resolve_config

_RECIPES = {"oct": "oct", "smoke": "demo", "xray": "xray"}


@pytest.mark.parametrize("name", space_names())
def test_each_space_loads_holds_its_recipe_and_opens_with_its_command(name: str) -> None:
    """The recipe's own values lie inside, so that the first trial is the recipe."""
    recipe = _RECIPES[name]
    space = read_space(name, [read_recipe(recipe)])
    located = space.locate(resolve_config(recipe, []))
    assert located.outside == {}
    text = (resources.files("tune_spaces") / "spaces" / f"{name}.yaml").read_text()
    assert text.startswith(f"# xdist-train tune {recipe} space={name}")


def test_a_file_of_ones_own_is_read_by_path(tmp_path: Path) -> None:
    """With or without sections."""
    path = tmp_path / "my.yaml"
    path.write_text("optim: {lr: {loguniform: [1.0e-3, 1.0e-2]}}\ntrain.seed: {randint: [0, 9]}\n")
    assert ["optim.lr", "train.seed"] == list(read_space(str(path), demo_layers()).specs)


def test_a_case_may_be_a_plain_value() -> None:
    """It is then the only one."""
    spec = write_space(
        "model.hidden: {choice: [0, 64]}\nmodel.dropout: {by: model.hidden, cases: {0: 0}, default: 0.5}"
    ).specs["model.dropout"]
    assert [{"choice": [0.0]}, {"choice": [0.5]}] == [leaf.to_dict() for _, leaf in leaves(spec)]


def test_choices_become_values_of_the_config() -> None:
    """1 is 1.0 where a float belongs, in lists too."""
    spec = write_space("augment.crop_scale: {choice: [[0.5, 1], [1, 1]]}").specs["augment.crop_scale"]
    assert isinstance(spec, Leaf)
    assert {"choice": [[0.5, 1.0], [1.0, 1.0]]} == spec.to_dict()


def test_a_value_may_need_another_key_of_the_space() -> None:
    """Weights by list are possible only with the list, which the space gives in that case."""
    space = write_space(
        "loss.class_weights: {choice: [none, list]}\n"
        "loss.class_weight_list: {by: loss.class_weights, cases: {list: {choice: [[1, 2, 3, 4]]}}}"
    )
    assert ["loss.class_weights", "loss.class_weight_list"] == list(space.specs)


def test_a_case_is_reached_by_any_way_there_is() -> None:
    """sgd comes with both networks; the case that wants the second is possible, and checked with it."""
    space = write_space(
        "model.backbone: {choice: [resnet18, small_cnn]}\n"
        "optim.name: {by: model.backbone, cases: {resnet18: sgd}, default: {choice: [sgd, adam]}}\n"
        "optim.lr: {by: optim.name, cases: {sgd: {by: model.backbone, cases: {small_cnn: 0.1}, default: 0.2}}}\n"
    )
    combinations = [space.values_of(params) for params in space.grid()]
    assert [0.2, 0.1, None] == [values.get("optim.lr") for values in combinations]


_BACKBONE = "model.backbone: {choice: [resnet18, small_cnn]}\n"
_MISTAKES = {
    "misspelt key": (
        "optim.lrr: {uniform: [0, 1]}",
        "unknown key 'optim.lrr'. Did you mean 'optim.lr'?",
    ),
    "misspelt key in a section": (
        "optim: {lrr: {uniform: [0, 1]}}",
        "unknown key 'optim.lrr'. Did you mean 'optim.lr'?",
    ),
    "misspelt section": (
        "optin: {lr: {uniform: [0, 1]}}",
        "unknown key 'optin'. Did you mean 'optim'?",
    ),
    "section": ("optim: [1]", "optim: is a section. Give keys of it, e.g. optim.lr:"),
    "empty": ("# nothing\n", "the space is empty. Give a key and what it may take, e.g. optim.lr:"),
    "empty section": ("optim: {}", "the space is empty."),
    "twice": (
        "optim: {lr: {uniform: [0.1, 1]}}\noptim.lr: {uniform: [0.1, 1]}",
        "optim.lr: is given twice, dotted and in its section.",
    ),
    "twice in one mapping": (
        "optim.lr: {uniform: [0.1, 1]}\noptim.lr: {uniform: [0.1, 1]}",
        "found duplicate key optim.lr",
    ),
    "plain value": ("optim.lr: 0.1", "optim.lr: needs what it may take, e.g. optim.lr:"),
    "unknown kind": (
        "optim.lr: {loguniforn: [0.1, 1]}",
        "optim.lr: has 'loguniforn' where one kind belongs. Did you mean 'loguniform'? Kinds are: choice, uniform,",
    ),
    "no kind": ("optim.lr: {}", "optim.lr: has nothing where one kind belongs. Kinds are:"),
    "two kinds": (
        "optim.lr: {uniform: [0.1, 1], choice: [1]}",
        "optim.lr: has more than one kind: choice, uniform.",
    ),
    "unknown word": (
        "optim.lr: {uniform: [0.1, 1], stepp: 0.1}",
        "optim.lr: 'stepp' does not go with uniform. Did you mean 'step'? It takes: uniform, step.",
    ),
    "step of a choice": (
        "optim.lr: {choice: [0.1, 1], step: 0.1}",
        "optim.lr: 'step' does not go with choice. It takes: choice.",
    ),
    "low above high": ("optim.lr: {uniform: [1, 0.1]}", "optim.lr: uniform: low 1 is above high 0.1. Write [0.1, 1]."),
    "log of 0": (
        "optim.lr: {loguniform: [0, 1]}",
        "optim.lr: loguniform: low 0 has no logarithm. Take a low above 0, or uniform.",
    ),
    "log of a negative": (
        "model.hidden: {lograndint: [-1, 8]}",
        "model.hidden: lograndint: low -1 has no logarithm. Take a low above 0, or randint.",
    ),
    "one end": ("optim.lr: {uniform: [1]}", "optim.lr: uniform needs two numbers, e.g. uniform: [1, 8], not [1]."),
    "no numbers": ("optim.lr: {uniform: [a, b]}", "optim.lr: uniform needs two numbers"),
    "infinite": ("optim.lr: {uniform: [1, .inf]}", "optim.lr: uniform needs two numbers"),
    "fractions as whole numbers": (
        "train.epochs: {randint: [1, 2.5]}",
        "train.epochs: randint needs whole numbers, not [1, 2.5].",
    ),
    "reals for whole numbers": (
        "train.epochs: {uniform: [1, 5]}",
        "train.epochs: uniform does not fit, since this key takes whole numbers (randint or lograndint).",
    ),
    "whole numbers for reals": (
        "augment.rotation_degrees: {randint: [1, 5]}",
        "augment.rotation_degrees: randint does not fit, since this key takes real numbers (uniform or loguniform,",
    ),
    "numbers for truth": (
        "optim.nesterov: {randint: [0, 1]}",
        "optim.nesterov: randint does not fit, since this key takes true or false (choice).",
    ),
    "numbers for text": (
        "model.backbone: {randint: [0, 1]}",
        "model.backbone: randint does not fit, since this key takes text (choice).",
    ),
    "numbers for lists": (
        "optim.betas: {uniform: [0, 1]}",
        "optim.betas: uniform does not fit, since this key takes lists (choice).",
    ),
    "step of 0": ("optim.lr: {uniform: [0.1, 1], step: 0}", "optim.lr: step must be a number above 0, not 0."),
    "step of text": ("optim.lr: {uniform: [0.1, 1], step: x}", "optim.lr: step must be a number above 0, not 'x'."),
    "step of half": (
        "train.epochs: {randint: [1, 3], step: 0.5}",
        "train.epochs: step must be a whole number above 0, not 0.5.",
    ),
    "steps past the end": (
        "model.dropout: {uniform: [0, 0.5], step: 0.2}",
        "model.dropout: uniform: steps of 0.2 from 0 do not reach 0.5. Take 0.4 or 0.6 as high.",
    ),
    "empty choice": (
        "optim.lr: {choice: []}",
        "optim.lr: a choice needs a list of values, e.g. choice: [1, 2], not [].",
    ),
    "choice of no list": ("optim.lr: {choice: 0.1}", "optim.lr: a choice needs a list of values"),
    "choice twice": ("optim.lr: {choice: [1, 0.5, 1.0]}", "optim.lr: the choice has 1.0 twice."),
    "choice of sections": ("optim.lr: {choice: [{a: 1}]}", "optim.lr: takes values, not sections such as {'a': 1}."),
    "choice of a wrong type": ("optim.lr: {choice: [fast]}", "optim.lr: Value 'fast' of type 'str' could not"),
    "choice of a wrong name": (
        "optim.name: {choice: [adamw, adm]}",
        "optim.name: Invalid value 'adm', expected one of",
    ),
    "choice that the config refuses": (
        "sampler.alpha: {choice: [0, 0.5, 2]}",
        "sampler.alpha=2.0 is refused: sampler.alpha must lie in 0..1, not 2.0",
    ),
    "high that the config refuses": (
        "sampler.alpha: {uniform: [0, 1.5]}",
        "sampler.alpha=1.5 is refused: sampler.alpha must lie in 0..1, not 1.5",
    ),
    "low that the config refuses": (
        "optim.lr: {uniform: [0, 1]}",
        "optim.lr=0.0 is refused: optim.lr must be above 0, not 0.0",
    ),
    "case that the config refuses": (
        _BACKBONE + "model.dropout: {by: model.backbone, cases: {resnet18: {uniform: [0, 0.5]}}, default: 1.0}",
        "model.dropout=1.0 is refused: model.dropout must lie in 0..1 (below 1), not 1.0",
    ),
    "refused beside the recipe's own": (
        "train.micro_batch_size: {choice: [16, 128]}",
        "train.micro_batch_size=128 is refused: train.micro_batch_size 128 is larger than a step (64 x 1 images)",
    ),
    "condition on a key that is not there": (
        _BACKBONE + "optim.lr: {by: model.backbon, cases: {resnet18: 0.1}}",
        "optim.lr: depends on 'model.backbon', which is not in the space. Did you mean 'model.backbone'?",
    ),
    "condition on itself": (
        "optim.name: {by: optim.name, cases: {sgd: adamw}}",
        "optim.name: depends on itself (optim.name -> optim.name). Take one `by` out.",
    ),
    "conditions in a circle": (
        "optim.lr: {by: optim.name, cases: {sgd: 0.1}}\noptim.name: {by: train.seed, cases: {1: sgd}}\n"
        "train.seed: {by: optim.lr, cases: {0.1: 1}}",
        "optim.lr: depends on itself (optim.lr -> optim.name -> train.seed -> optim.lr).",
    ),
    "condition on reals": (
        "model.dropout: {uniform: [0, 0.5]}\noptim.lr: {by: model.dropout, cases: {0.5: 0.1}}",
        "optim.lr: depends on model.dropout, which takes any real number; a condition needs values to name.",
    ),
    "condition without cases": (
        _BACKBONE + "optim.lr: {by: model.backbone}",
        "optim.lr: by: model.backbone needs cases, e.g. cases:",
    ),
    "case that never is": (
        _BACKBONE + "optim.lr: {by: model.backbone, cases: {resnet81: 0.1}}",
        "optim.lr: case 'resnet81': model.backbone never takes it. Did you mean 'resnet18'? "
        "It takes: resnet18, small_cnn.",
    ),
    "case beyond a range": (
        "train.accumulation_steps: {randint: [1, 4]}\noptim.lr: {by: train.accumulation_steps, cases: {5: 0.1}}",
        "optim.lr: case 5: train.accumulation_steps never takes it. It takes: 1..4.",
    ),
    "case within a case that excludes it": (
        _BACKBONE
        + "optim.lr: {by: model.backbone, cases: {resnet18: {by: model.backbone, cases: {small_cnn: 0.1}}}}",
        "optim.lr: the case model.backbone=resnet18 and model.backbone=small_cnn can never happen. Take it out.",
    ),
    "case twice": (
        "optim.nesterov: {choice: [no, yes]}\noptim.lr: {by: optim.nesterov, cases: {no: 0.1, 'false': 0.2}}",
        "optim.lr: case false of optim.nesterov is given twice.",
    ),
    "condition on a list": (
        _BACKBONE + "optim.lr: {by: [model.backbone], cases: {resnet18: 0.1}}",
        "optim.lr: depends on ['model.backbone'], which is not in the space.",
    ),
    "cases that exclude each other over another key": (
        _BACKBONE
        + "optim.name: {by: model.backbone, cases: {resnet18: adam, small_cnn: sgd}}\n"
        + "optim.lr: {by: optim.name, cases: {sgd: {by: model.backbone, cases: {resnet18: 0.1}}}}",
        "optim.lr: the case optim.name=sgd and model.backbone=resnet18 can never happen. Take it out.",
    ),
    "no mapping": ("- a", "file my.yaml: must hold"),
    "no YAML": ("a: [", "file my.yaml: not a readable YAML file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_mistakes_are_refused_by_file_and_key(mistake: str) -> None:
    """One paragraph: where, what, and what to do."""
    text, message = _MISTAKES[mistake]
    with pytest.raises(InputError) as caught:
        write_space(text)
    assert str(caught.value).startswith("file my.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_space_is_refused_with_those_that_are() -> None:
    """By the nearest name."""
    with pytest.raises(InputError) as caught:
        read_space("octt", demo_layers())
    assert str(caught.value) == (
        "unknown space 'octt'. Did you mean 'oct'? Spaces are: oct, smoke, xray; or give the path of a YAML file."
    )


def test_a_missing_file_is_refused() -> None:
    """A path is a path."""
    with pytest.raises(InputError, match=r"file none\.yaml: cannot be read"):
        read_space("none.yaml", demo_layers())


def test_the_recipe_under_a_space_is_checked_too() -> None:
    """Its mistakes are its own."""
    with pytest.raises(InputError, match=r"command line: optim\.lr must be above 0"):
        write_space("train.seed: {randint: [0, 1]}", ["optim.lr=0"])
