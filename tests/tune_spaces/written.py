"""Spaces written in tests."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.config import Layer, parse_layer, parse_overrides
from tune_spaces.space import Space
from tune_spaces.space_file import build_space
from xdist_train.config import read_recipe

# All kinds, conditions in a case and on a key that is conditional itself, and a key of some cases only.
EVERYTHING = """
optim.lr:
  by: model.backbone
  cases:
    resnet18:
      by: optim.name
      cases: {sgd: {loguniform: [1.0e-2, 1.0]}}
      default: {loguniform: [1.0e-4, 1.0e-2]}
    small_cnn: 4.0e-3
  default: {uniform: [1.0e-4, 1.0e-3]}
optim:
  name: {choice: [adamw, sgd]}
  momentum: {by: optim.name, cases: {sgd: {uniform: [0.8, 0.98], step: 0.03}}}
  nesterov: {by: optim.name, cases: {sgd: {choice: [true, false]}}}
  betas: {by: optim.name, cases: {adamw: {choice: [[0.9, 0.999], [0.8, 0.99]]}}}
model.backbone: {choice: [small_cnn, resnet18, resnet50]}
model.hidden: {lograndint: [8, 128], step: 8}
model.dropout: {by: model.hidden, cases: {8: 0.0}, default: {uniform: [0, 0.5], step: 0.1}}
train.accumulation_steps: {randint: [1, 4]}
loss.focal_gamma: {by: optim.nesterov, cases: {no: {loguniform: [0.1, 4], step: 0.3}}}
"""


def demo_layers(overrides: Sequence[str] = ()) -> list[Layer]:
    """The demo recipe, and what is laid over it."""
    return [read_recipe("demo"), *parse_overrides(overrides)]


def write_space(text: str, overrides: Sequence[str] = ()) -> Space:
    """A space of the demo recipe from YAML text, as if from file `my.yaml`."""
    return build_space(parse_layer(text.encode(), "file my.yaml"), demo_layers(overrides))
