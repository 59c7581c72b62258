"""The table of target layers, and what is said where it has no answer."""

from __future__ import annotations

import pytest
import torch

from cluster.errors import InputError
from xdist_train.config import CamConfig, ModelConfig
from xdist_train.evidence.cams.choice import choose
from xdist_train.evidence.cams.layers import LAYERS, find_layer
from xdist_train.evidence.cams.methods import Explainer
from xdist_train.models.backbones import build_model, find_backbone

# A small member of each family, the side it takes, and whether classic maps are exact there.
_MEMBERS = {
    "small_cnn": (64, True),
    "alexnet": (128, False),
    "convnext_tiny": (64, False),
    "densenet121": (64, False),
    "efficientnet_b0": (64, True),
    "googlenet": (64, True),
    "inception_v3": (128, True),
    "mobilenet_v2": (64, True),
    "mobilenet_v3_small": (64, False),
    "regnet_y_400mf": (64, True),
    "resnet18": (64, True),
    "shufflenet_v2_x0_5": (64, True),
    "vgg11": (64, False),
    "timm/repvgg_a0": (64, True),
    "timm/convnext_atto": (64, False),
    "timm/cspresnet50": (64, True),
    "timm/densenet121": (64, True),
    "timm/tf_efficientnet_lite0": (64, True),
    "timm/ghostnet_050": (64, False),
    "timm/inception_resnet_v2": (128, True),
    "timm/inception_v3": (128, True),
    "timm/inception_v4": (128, True),
    "timm/mobilenetv3_small_050": (64, False),
    "timm/nf_resnet26": (64, True),
    "timm/regnety_002": (64, True),
    "timm/resnet18": (64, True),
    "timm/rexnet_100": (64, True),
    "timm/vgg11": (64, False),
    "timm/legacy_xception": (128, True),
}


def test_every_family_has_a_member_here() -> None:
    """No row of the table goes untried."""
    tried = set()
    for name in _MEMBERS:
        with torch.device("meta"):
            tried.add((find_backbone(name).library, type(build_model(ModelConfig(backbone=name), 3)).__name__))
    assert {(library, family) for library, families in LAYERS.items() for family in families} == tried


@pytest.mark.parametrize("name", _MEMBERS)
def test_the_tables_layer_gives_maps_and_auto_is_right(name: str) -> None:
    """Maps of 2 x 2 cells or more, classic where it is exact, else Grad-CAM."""
    size, exact = _MEMBERS[name]
    torch.manual_seed(0)
    choice = choose(build_model(ModelConfig(backbone=name), 3), name, CamConfig(), size)
    assert ("classic" if exact else "gradcam") == choice.method
    assert min(choice.map_height, choice.map_width) >= 2


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "timm/mixer_s32_224"])
def test_a_backbone_without_a_known_layer_is_refused(name: str) -> None:
    """The paragraph names the setting that helps."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name), 3)
    with pytest.raises(InputError, match=r"no layer is known .*cam\.layer=DOTTED\.NAME"):
        find_layer(model, name)


def test_a_wrong_layer_is_answered_with_the_nearest_names() -> None:
    """A slip of the pen finds its layer; something else, what there is."""
    model = build_model(ModelConfig(backbone="resnet18"), 3)
    with pytest.raises(InputError, match=r"cam\.layer 'layer4\.2'.*Nearest names: .*layer4\.1"):
        find_layer(model, "resnet18", "layer4.2")
    with pytest.raises(InputError, match="It has: conv1, bn1"):
        find_layer(model, "resnet18", "???")
    assert "layer3" == find_layer(model, "resnet18", "layer3")


@pytest.mark.parametrize(
    ("layer", "words"), [("avgpool", r"gives \[2, 512, 1, 1\]"), ("layer4.1.relu", "runs 2 times")]
)
def test_a_layer_without_a_map_is_refused(layer: str, words: str) -> None:
    """Vectors and shared modules are no maps."""
    with pytest.raises(InputError, match=words):
        choose(build_model(ModelConfig(backbone="resnet18"), 3), "resnet18", CamConfig(layer=layer), 64)


def test_channels_that_come_last_are_seen() -> None:
    """Swin's blocks give [n, h, w, channels]; taken for channels first they would be nonsense."""
    model = build_model(ModelConfig(backbone="swin_t"), 3)
    with pytest.raises(InputError, match="no map of the picture"):
        choose(model, "swin_t", CamConfig(layer="features.7"), 224)


@pytest.mark.parametrize(
    ("settings", "layer"),
    [({"hidden": 8}, ""), ({}, "layer3"), ({"backbone": "convnext_tiny"}, ""), ({"backbone": "densenet121"}, "")],
)
def test_classic_is_refused_where_it_is_not_exact(settings: dict[str, object], layer: str) -> None:
    """A hidden layer, another layer, a norm or a ReLU between: each is found out."""
    config = ModelConfig(**{"backbone": "resnet18", **settings})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cam\.method=classic is not exact"):
        choose(build_model(config, 3), config.backbone, CamConfig(method="classic", layer=layer), 64)


def test_dropout_in_the_head_leaves_classic_exact() -> None:
    """It does nothing in eval mode."""
    config = ModelConfig(backbone="resnet18", dropout=0.5)
    assert "classic" == choose(build_model(config, 3), "resnet18", CamConfig(), 64).method


def test_a_change_in_place_behind_the_layer_does_not_reach_its_output() -> None:
    """DenseNet's ReLU works in place on what the layer gave."""
    torch.manual_seed(0)
    explainer = Explainer(build_model(ModelConfig(backbone="densenet121"), 3), "features", "gradcam")
    view = explainer.look(torch.randn(1, 3, 64, 64))
    assert float(view.features.detach().min()) < 0
    assert explainer.maps(view, torch.tensor([0])).shape == (1, 2, 2)


def test_classic_is_exact_for_one_logit() -> None:
    """`auto` takes it: each class's logit is the mean of its map and its bias."""
    model = build_model(ModelConfig(backbone="resnet18", outputs="sigmoid"), 2)
    assert "classic" == choose(model, "resnet18", CamConfig(), 64).method


def test_a_network_of_one_channel_is_explained() -> None:
    """It is tried on noise of one channel."""
    model = build_model(ModelConfig(backbone="resnet18", in_channels=1), 3)
    assert "classic" == choose(model, "resnet18", CamConfig(), 64, channels=1).method
