"""Which layer and which method explain a model: what was asked for, or what is right for it.

Classic maps are exact where the mean of a class's map and its bias add up to its logit. That is decided by the
head's form and then tried, with numbers, on the model itself. Knows no data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.errors import InputError
from xdist_train.config import CamConfig
from xdist_train.evidence.cams.layers import find_layer
from xdist_train.evidence.cams.methods import METHODS, Explainer, LayerError, View
from xdist_train.models.backbones import INPUT_CHANNELS
from xdist_train.models.heads import find_head

__all__ = ["Choice", "choose", "is_exact"]

_EXACT = 1e-3
"""Largest error of a logit rebuilt from its map, in shares of what the logits are beside their bias; rounding is
a hundred times less, a layer that is not the pooled one a hundred times more."""


@dataclass(frozen=True)
class Choice:
    """How a model is explained: method, layer, and the maps' size in cells."""

    method: str
    layer: str
    map_height: int
    map_width: int

    @property
    def name(self) -> str:
        """What the folder of its results is called."""
        return f"{self.method}-{self.layer}"


def choose(
    model: nn.Module, backbone: str, config: CamConfig, image_size: int, channels: int = INPUT_CHANNELS
) -> Choice:
    """The layer and the method that explain a model, tried on two images of noise.

    Args:
        model: on the CPU.
        backbone: its `model.backbone`.
        config: what was asked for.
        image_size: of the model's input, pixels.
        channels: of the model's input.

    Raises:
        InputError: no known layer, one that gives no maps, or classic asked for where it is not exact.
    """
    layer = find_layer(model, backbone, config.layer)
    view = _probe(model, layer, backbone, (2, channels, image_size, image_size))
    _require_maps(view.features, layer, backbone)
    exact = is_exact(view)
    if config.method == "classic" and not exact:
        raise InputError(
            f"cam.method=classic is not exact for {backbone} at layer {layer!r}: it needs one linear layer right "
            "behind global average pooling of that layer (no hidden layer, no norm or activation between). Use "
            "cam.method=auto or gradcam, or name the pooled layer by cam.layer."
        )
    method = ("classic" if exact else "gradcam") if config.method == "auto" else config.method
    assert method in METHODS, method
    return Choice(method, layer, int(view.features.shape[2]), int(view.features.shape[3]))


def is_exact(view: View) -> bool:
    """Whether a class's logit is the mean of its classic map and a bias."""
    head = find_head(view.model)[1]
    weights, bias = head.logit_weights()
    if hasattr(head, "hidden") or weights.shape[1] != view.features.shape[1]:
        return False
    evidence = view.logits - bias
    rebuilt = view.features.mean(dim=(2, 3)) @ weights.T
    rounding = torch.finfo(view.logits.dtype).eps * view.logits.abs().max()
    return bool((rebuilt - evidence).abs().max() <= _EXACT * evidence.abs().max() + 4 * rounding)


def _probe(model: nn.Module, layer: str, backbone: str, shape: tuple[int, ...]) -> View:
    parameter, generator = next(model.parameters()), torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
    try:
        return Explainer(model, layer, "classic").look(images)
    except LayerError as error:
        raise InputError(f"cam.layer {layer!r} of {backbone} {error}. Name a convolutional layer or stage.") from None


def _require_maps(features: Tensor, layer: str, backbone: str) -> None:
    """Square input gives square maps, so channels that come last are seen here too."""
    shape = tuple(features.shape)
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] < 2:
        raise InputError(
            f"cam.layer {layer!r} of {backbone} gives {list(shape)}: no map of the picture, which would be "
            "[images, channels, height, width] with 2 x 2 cells or more. Name an earlier convolutional layer."
        )
