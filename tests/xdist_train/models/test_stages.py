"""Stages as the networks' makers meant them."""

from __future__ import annotations

import pytest
import torch

from xdist_train.config import ModelConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.heads import trunk_tensors
from xdist_train.models.stages import find_stages, parameters_of


def _vgg(ends: list[int]) -> list[list[str]]:
    starts = [0, *ends[:-1]]
    features = [[f"features.{number}" for number in range(*span)] for span in zip(starts, ends, strict=True)]
    return [*features, ["avgpool", *(f"classifier.{number}" for number in range(6))]]


_INCEPTION_STEM = ["conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a", "maxpool_5a"]
_EXPECTED = {
    "small_cnn": [["stem"], ["stages.0"], ["stages.1"], ["stages.2", "pool"]],
    "resnet18": [["conv1", "bn1", "relu", "maxpool"], ["layer1"], ["layer2"], ["layer3"], ["layer4", "avgpool"]],
    "vgg16": _vgg([5, 10, 17, 24, 31]),
    "vgg19_bn": _vgg([7, 14, 27, 40, 53]),
    "alexnet": _vgg([3, 6, 13]),
    "densenet121": [
        ["features.conv0", "features.norm0", "features.relu0", "features.pool0"],
        ["features.denseblock1"],
        ["features.transition1", "features.denseblock2"],
        ["features.transition2", "features.denseblock3"],
        ["features.transition3", "features.denseblock4", "features.norm5"],
    ],
    "tf_efficientnet_lite0": [
        ["conv_stem", "bn1"],
        *([f"blocks.{number}"] for number in range(7)),
        ["conv_head", "bn2", "global_pool"],
    ],
    "inception_resnet_v2": [
        _INCEPTION_STEM,
        *([name] for name in ("mixed_5b", "repeat", "mixed_6a", "repeat_1", "mixed_7a", "repeat_2", "block8")),
        ["conv2d_7b", "global_pool", "head_drop"],
    ],
    "convnext_tiny": [
        ["features.0"],
        ["features.1"],
        ["features.2", "features.3"],
        ["features.4", "features.5"],
        ["features.6", "features.7", "avgpool", "classifier.0", "classifier.1"],
    ],
    "vit_b_16": [
        ["class_token", "conv_proj", "encoder.pos_embedding", "encoder.dropout"],
        *([f"encoder.layers.encoder_layer_{number}"] for number in range(11)),
        ["encoder.layers.encoder_layer_11", "encoder.ln"],
    ],
}


@pytest.mark.parametrize("name", _EXPECTED)
def test_stages_are_those_of_the_network(name: str) -> None:
    """From the tree alone, without numbers; together they hold each parameter of the trunk once."""
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=name), 3)
    stages = find_stages(model)
    assert _EXPECTED[name] == stages
    trunk = [parameter for key, parameter in model.named_parameters() if key in trunk_tensors(model)]
    held = [id(parameter) for stage in stages for parameter in parameters_of(model, stage)]
    assert sorted(map(id, trunk)) == sorted(held)
