"""Backbones: names, the replaced last layer, and what sizes they take."""

from __future__ import annotations

import pytest
import torch

from cluster.errors import InputError
from xdist_train.config import ModelConfig
from xdist_train.models.backbones import (
    Backbone,
    build_model,
    check_model,
    find_backbone,
    pretrained_normalisation,
)
from xdist_train.models.heads import find_head, is_frozen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small_cnn", Backbone("ours", "small_cnn")),
        ("resnet18", Backbone("torchvision", "resnet18")),
        ("timm/resnet18", Backbone("timm", "resnet18")),
        ("tf_efficientnet_lite0", Backbone("timm", "tf_efficientnet_lite0")),
    ],
)
def test_one_rule_finds_a_name(name: str, expected: Backbone) -> None:
    """A bare name prefers torchvision; `timm/` asks for timm's."""
    assert expected == find_backbone(name)


@pytest.mark.parametrize("name", ["resnet19", "timm/resnet19", "squeezenet1_0", "mnasnet1_0"])
def test_an_unknown_name_is_refused_with_the_nearest(name: str) -> None:
    """The error gives names that exist."""
    with pytest.raises(InputError, match=r"Nearest names: .*net"):
        find_backbone(name)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("small_cnn", "head"),
        ("resnet18", "fc"),
        ("alexnet", "classifier.6"),
        ("efficientnet_b0", "classifier.1"),
        ("regnet_y_400mf", "fc"),
        ("googlenet", "fc"),
        ("vit_b_16", "heads.head"),
        ("tf_efficientnet_lite0", "classifier"),
        ("timm/convnext_atto", "head.fc"),
        ("inception_resnet_v2", "classif"),
    ],
)
def test_the_last_linear_layer_becomes_our_head(name: str, head: str) -> None:
    """Every family ends in our head and gives one logit a class, seen by shapes alone."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name, dropout=0.1, hidden=7), 4)
    check_model(model, name, 224)
    assert head == find_head(model)[0]


def test_the_tutorials_frozen_vgg16_has_its_parameter_counts() -> None:
    """VGG-16 with a hidden layer of 256: 135,310,404 parameters, of which 1,049,860 are trained."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone="vgg16", hidden=256, dropout=0.2, freeze="backbone"), 4)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    assert (sum(size for size, _ in sizes), trained) == (135_310_404, 1_049_860)


def test_networks_with_two_heads_are_refused() -> None:
    """A distilled transformer has no single last layer."""
    with (
        torch.device("meta"),
        pytest.raises(InputError, match=r"timm/deit_tiny_distilled.*cannot be replaced"),
    ):
        build_model(ModelConfig(backbone="timm/deit_tiny_distilled_patch16_224"), 2)


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 128), ("alexnet", 32)])
def test_an_image_size_that_does_not_fit_is_refused(name: str, size: int) -> None:
    """The driver learns it from shapes, before workers start."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name), 4)
    with pytest.raises(InputError, match=f"loader.image_size={size}"):
        check_model(model, name, size)


def test_checking_leaves_the_model_as_it_was() -> None:
    """Shapes are tried on a copy."""
    model = build_model(ModelConfig(), 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model, "resnet18", 96)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


def test_freeze_is_applied_as_configured() -> None:
    """`model.freeze=backbone` gives a frozen trunk."""
    assert [
        is_frozen(build_model(ModelConfig(backbone="small_cnn", freeze=freeze), 2)) for freeze in ("none", "backbone")
    ] == [False, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 0.485), ("inception_v3", 0.5), ("tf_efficientnet_lite0", 0.5)],
)
def test_pretrained_weights_have_their_normalisation(name: str, expected: float) -> None:
    """The mean of the first channel is that of the library's weights."""
    assert expected == pretrained_normalisation(find_backbone(name)).mean[0]


def test_our_network_has_no_pretrained_weights() -> None:
    """`imagenet` is refused for it."""
    with pytest.raises(InputError, match=r"no pretrained weights.*small_cnn"):
        pretrained_normalisation(find_backbone("small_cnn"))


@pytest.mark.parametrize("num_classes", [1, 3, 4])
def test_one_logit_is_for_two_classes(num_classes: int) -> None:
    """Any other number is refused, and says what to do."""
    with pytest.raises(InputError, match=rf"outputs=sigmoid.* {num_classes}\. Use model.outputs=softmax"):
        build_model(ModelConfig(backbone="small_cnn", outputs="sigmoid"), num_classes)
    model = build_model(ModelConfig(backbone="small_cnn", outputs="sigmoid"), 2)
    check_model(model, "small_cnn", 32)
    assert list(model(torch.zeros(5, 3, 32, 32)).shape) == [5, 2]
