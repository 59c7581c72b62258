"""The layer whose output a class activation map is made of, for each family of networks.

A family is the class that a library builds its networks of. The layer is the last with a spatial map: what
global pooling reads, where the library has that as a module. Knows no method and no data.
"""

from __future__ import annotations

import difflib

from torch import nn

from cluster.errors import InputError
from xdist_train.models.backbones import find_backbone

__all__ = ["LAYERS", "find_layer"]

LAYERS = {
    "ours": {"SmallCnn": "stages"},
    "torchvision": {
        "AlexNet": "features",
        "ConvNeXt": "features",
        "DenseNet": "features",
        "EfficientNet": "features",
        "GoogLeNet": "inception5b",
        "Inception3": "Mixed_7c",
        "MobileNetV2": "features",
        "MobileNetV3": "features",
        "RegNet": "trunk_output",
        "ResNet": "layer4",
        "ShuffleNetV2": "conv5",
        "VGG": "features",
    },
    "timm": {
        "ByobNet": "final_conv",
        "ConvNeXt": "stages",
        "CspNet": "stages",
        "DenseNet": "features",
        "EfficientNet": "bn2",
        "GhostNet": "blocks",
        "InceptionResnetV2": "conv2d_7b",
        "InceptionV3": "Mixed_7c",
        "InceptionV4": "features",
        "MobileNetV3": "blocks",
        "NormFreeNet": "final_act",
        "RegNet": "final_conv",
        "ResNet": "layer4",
        "RexNet": "features",
        "VGG": "features",
        "Xception": "act4",
    },
}
"""Target layer by library and class of network."""


def find_layer(model: nn.Module, backbone: str, wanted: str = "") -> str:
    """Dotted name of the layer to explain a network by.

    Args:
        model: from `build_model`.
        backbone: its `model.backbone`.
        wanted: `cam.layer`; empty takes the family's.

    Raises:
        InputError: the family is not known and no layer is named, or the named one is not there.
    """
    names = [name for name, _ in model.named_modules() if name]
    if wanted:
        if wanted not in names:
            raise InputError(f"cam.layer {wanted!r}: {backbone} has no such layer.{_nearest(wanted, names)}")
        return wanted
    library, family = find_backbone(backbone).library, type(model).__name__
    layer = LAYERS[library].get(family)
    if layer is None:
        raise InputError(
            f"model.backbone {backbone!r}: no layer is known for networks of the kind {family}, whose last features "
            "may not be a map of the picture. Name one that gives [images, channels, height, width] by "
            "cam.layer=DOTTED.NAME, or choose a convolutional backbone."
        )
    return layer


def _nearest(wanted: str, names: list[str]) -> str:
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    top = [name for name in names if "." not in name]
    return f" Nearest names: {', '.join(close)}." if close else f" It has: {', '.join(top)}."
