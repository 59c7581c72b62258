"""The head: its layers, and what is trunk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xdist_train.models.heads import (
    Head,
    find_head,
    freeze_backbone,
    is_frozen,
    set_train_mode,
    trunk_tensors,
)


def _model() -> nn.Sequential:
    trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    return nn.Sequential(trunk, Head(6, 3, dropout=0.2))


@pytest.mark.parametrize(
    ("dropout", "hidden", "expected"),
    [
        (0.0, 0, ["linear"]),
        (0.1, 0, ["dropout", "linear"]),
        (0.0, 5, ["hidden", "relu", "linear"]),
        (0.1, 5, ["hidden", "relu", "dropout", "linear"]),
    ],
)
def test_layers_follow_dropout_and_hidden(dropout: float, hidden: int, expected: list[str]) -> None:
    """Dropout stands before the last layer; what is switched off is not there."""
    assert expected == [name for name, _ in Head(8, 3, dropout=dropout, hidden=hidden).named_children()]


def test_trunk_is_all_but_the_head() -> None:
    """Trunk and head tensors make up the state dict, without overlap."""
    model = _model()
    name, _ = find_head(model)
    expected = {key for key in model.state_dict() if not key.startswith(f"{name}.")}
    assert expected == set(trunk_tensors(model))


def test_freezing_leaves_the_head_trainable() -> None:
    """Only the head's parameters take a gradient."""
    model = _model()
    freeze_backbone(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == ["1.linear.weight", "1.linear.bias"]
    assert is_frozen(model)


def test_a_frozen_trunk_stays_in_eval_mode() -> None:
    """In train mode, BatchNorm and dropout of a frozen trunk rest; those of the head do not."""
    model = _model()
    freeze_backbone(model)
    set_train_mode(model)
    modes = {name: module.training for name, module in model.named_modules() if not list(module.children())}
    expected = {"0.0": False, "0.1": False, "0.2": False, "1.dropout": True, "1.linear": True}
    assert expected == modes


def test_batch_norm_figures_of_a_frozen_trunk_do_not_move() -> None:
    """A forward pass in train mode leaves the frozen trunk's buffers as they were."""
    model = _model()
    freeze_backbone(model)
    set_train_mode(model)
    before = {name: tensor.clone() for name, tensor in trunk_tensors(model).items()}
    model(torch.randn(8, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in trunk_tensors(model).items())


def test_a_free_model_is_wholly_in_train_mode() -> None:
    """Nothing frozen, nothing in eval mode, also after an evaluation."""
    model = _model().eval()
    set_train_mode(model)
    assert all(module.training for module in model.modules())
