"""What is frozen takes no gradient, and rests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cluster.errors import InputError
from xdist_train.config import ModelConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.freezing import freeze_backbone, is_frozen, set_train_mode
from xdist_train.models.heads import Head, trunk_tensors


def _model() -> nn.Sequential:
    trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    return nn.Sequential(trunk, Head(6, 3, dropout=0.2))


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


def test_frozen_stages_rest_and_the_others_train() -> None:
    """Of alexnet's first three stages no parameter takes a gradient; the rest trains, its dropout too."""
    model = build_model(ModelConfig(backbone="alexnet", freeze="stages:3"), 2)
    free = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"classifier"} == free
    set_train_mode(model)
    modes = {name: module.training for name, module in model.named_modules() if not list(module.children())}
    assert {name: name.startswith(("classifier", "avgpool")) for name in modes} == modes


def test_batch_norm_of_frozen_stages_rests() -> None:
    """With two of resnet18's stages frozen, the figures of the stem and layer1 stay and those of the others move."""
    model = build_model(ModelConfig(freeze="stages:2"), 2)
    set_train_mode(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("running_mean")}
    model(torch.randn(2, 3, 64, 64))
    rest = {name for name, buffer in model.named_buffers() if name in before and torch.equal(before[name], buffer)}
    assert {name for name in before if name.startswith(("bn1", "layer1"))} == rest


def test_more_stages_than_there_are_cannot_be_frozen() -> None:
    """The error says how many there are."""
    with torch.device("meta"), pytest.raises(InputError, match=r"model\.freeze=stages:6: .*'resnet18', 5 stages"):
        build_model(ModelConfig(freeze="stages:6"), 2)


@pytest.mark.parametrize("freeze", ["head", "stages:0", "stages:", "stages:x", "stages:-1", "Backbone"])
def test_only_what_can_be_frozen_is_named(freeze: str) -> None:
    """Two words, or a number of stages."""
    with pytest.raises(ValueError, match=r"model\.freeze must be"):
        ModelConfig(freeze=freeze)
