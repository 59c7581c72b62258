"""The head: its layers, and what is trunk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from xdist_train.models.heads import BothLogits, Head, find_head, trunk_tensors


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


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=8))
def test_the_softmax_of_both_logits_is_the_sigmoid_of_the_one(values: list[float]) -> None:
    """Probability of the second class is sigmoid(z), of the first 1 - sigmoid(z), far out too."""
    z = torch.tensor(values, dtype=torch.float64)
    expected = torch.stack([(-z).sigmoid(), z.sigmoid()], dim=1)
    torch.testing.assert_close(BothLogits()(z[:, None]).softmax(dim=1), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("one_logit", [True, False])
def test_logit_weights_give_the_logits(one_logit: bool) -> None:
    """Features times each class's weights plus bias are the head's logits; of one logit the classes are opposite."""
    head, features = Head(6, 2, one_logit=one_logit), torch.randn(4, 6)
    weights, bias = head.logit_weights()
    torch.testing.assert_close(features @ weights.T + bias, head(features))
    assert one_logit == torch.equal(weights[0], -weights[1])


def test_one_logit_has_the_parameters_of_one() -> None:
    """A linear layer of one output; what makes two of it learns nothing."""
    sizes = {name: list(tensor.shape) for name, tensor in Head(6, 2, one_logit=True).state_dict().items()}
    assert sizes == {"linear.weight": [1, 6], "linear.bias": [1]}
