"""Backbones: names, the replaced last layer, and what sizes they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cluster.errors import InputError
from xdist_train.config import ModelConfig
from xdist_train.models.backbones import (
    Backbone,
    build_model,
    check_model,
    find_backbone,
    pretrained_normalisation,
    require_channels,
)
from xdist_train.models.freezing import is_frozen
from xdist_train.models.heads import find_head


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


def _pair(backbone: str) -> list[nn.Module]:
    """Networks of three channels and of one with the same new weights, in eval mode."""
    networks = []
    for channels in (3, 1):
        torch.manual_seed(0)
        networks.append(build_model(ModelConfig(backbone=backbone, in_channels=channels), 2).eval())
    return networks


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18", "timm/resnet18", "tf_efficientnet_lite0", "vit_b_32"])
def test_one_channel_is_three_that_are_equal(backbone: str) -> None:
    """A network of one channel gives the logits of its twin on the expanded picture, within 1e-5."""
    three, one = _pair(backbone)
    gray = torch.randn(2, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one(gray), three(gray.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_one_channel_is_a_third_of_the_first_layer() -> None:
    """Only the first convolution changes, from three input channels to one."""
    three, one = ({name: list(tensor.shape) for name, tensor in net.state_dict().items()} for net in _pair("resnet18"))
    assert {"conv1.weight": ([64, 3, 7, 7], [64, 1, 7, 7])} == {
        name: (shape, one[name]) for name, shape in three.items() if shape != one[name]
    }


@pytest.mark.parametrize("name", ["densenet121", "vgg11", "mobilenet_v3_small", "convnext_tiny", "inception_v3",
                                  "timm/inception_resnet_v2", "timm/xception41", "timm/regnety_002"])  # fmt: skip
def test_every_family_takes_one_channel(name: str) -> None:
    """By shapes: gray pictures go in, and coloured ones do not."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name, in_channels=1), 2)
    check_model(model, name, 299, 1)
    with pytest.raises(InputError, match="does not take images"):
        check_model(model, name, 299, 3)


def test_a_network_of_one_channel_takes_gray_sets_only() -> None:
    """Coloured pictures are refused with what to do; gray ones go into any network."""
    for channels in (1, 3):
        require_channels(ModelConfig(in_channels=channels), 1, "set")
    require_channels(ModelConfig(), 3, "set")
    with pytest.raises(InputError, match=r"model.in_channels=1 takes gray pictures, those of set have 3.*Use model"):
        require_channels(ModelConfig(in_channels=1), 3, "set")


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_are_one_or_three(channels: int) -> None:
    """Nothing else can be made of a picture."""
    with pytest.raises(ValueError, match=r"model\.in_channels must be 3 or 1"):
        ModelConfig(in_channels=channels)
