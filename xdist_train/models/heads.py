"""The part of a network that we put in place of its last layer, and what tells it from the trunk.

A model has exactly one `Head`; everything else in it is the trunk. Knows no backbone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["BothLogits", "Head", "find_head", "trunk_tensors"]


class Head(nn.Sequential):
    """`[hidden, relu,] dropout, linear [, both]`: features [n, in_features] to logits [n, num_classes].

    Dropout stands before the last layer, so after the hidden one if there is one.

    Args:
        in_features: width of the trunk's features.
        num_classes: logits.
        dropout: probability of a zeroed feature; 0 leaves the layer out.
        hidden: units of the hidden layer; 0 leaves it out.
        one_logit: the linear layer has one output for two classes, of which `both` makes a logit each.
    """

    def __init__(
        self, in_features: int, num_classes: int, *, dropout: float = 0.0, hidden: int = 0, one_logit: bool = False
    ) -> None:
        assert num_classes == 2 or not one_logit, f"one logit for {num_classes} classes"
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden:
            layers["hidden"] = nn.Linear(in_features, hidden)
            layers["relu"] = nn.ReLU()
        if dropout:
            layers["dropout"] = nn.Dropout(dropout)
        layers["linear"] = nn.Linear(hidden or in_features, 1 if one_logit else num_classes)
        if one_logit:
            layers["both"] = BothLogits()
        super().__init__(layers)
        self.num_classes = num_classes

    def logit_weights(self) -> tuple[Tensor, Tensor]:
        """Weights [num_classes, features] and bias [num_classes] from the last features to each class's logit."""
        linear = cast(nn.Linear, self.linear)
        if hasattr(self, "both"):
            both = cast(BothLogits, self.both)
            return both(linear.weight.T).T, both(linear.bias[:, None])[0]
        return linear.weight, linear.bias


class BothLogits(nn.Module):
    """One logit z [n, 1] of two classes to [n, 2]: -z/2 and z/2.

    Their softmax is 1 - sigmoid(z) and sigmoid(z), so cross-entropy of them, weighted, smoothed or focal, is the
    binary one, and all that takes a logit a class (figures, maps, files) takes these. Halves are exact, and each class
    has evidence of its own: with 0 and z the first one's maps would be blank.
    """

    def forward(self, logit: Tensor) -> Tensor:
        """The logits of both classes."""
        half = logit / 2
        return torch.cat([-half, half], dim=1)


def find_head(model: nn.Module) -> tuple[str, Head]:
    """The dotted name and the module of a model's head."""
    heads = [(name, module) for name, module in model.named_modules() if isinstance(module, Head)]
    assert len(heads) == 1, f"a model has one head, this one has {len(heads)}"
    return heads[0]


def trunk_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers outside the head, by their name in the state dict."""
    prefix = f"{find_head(model)[0]}."
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}
