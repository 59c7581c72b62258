"""Networks by name, with our head in place of their last layer.

One rule finds a name: `small_cnn` is ours; `timm/NAME` is timm's; a bare name is torchvision's where
torchvision has it, else timm's (35 names are in both; write `timm/resnet50` for timm's). Models take
three channels, to which gray images are expanded, or one (`model.in_channels=1`). Knows no data and no weights.
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cluster.errors import InputError
from xdist_train.config import ModelConfig
from xdist_train.models.freezing import freeze_backbone, freeze_stages
from xdist_train.models.heads import Head, find_head
from xdist_train.models.small_cnn import SmallCnn
from xdist_train.models.torchvision_shim import import_timm, import_torchvision_models

__all__ = [
    "INPUT_CHANNELS",
    "Backbone",
    "Normalisation",
    "build_model",
    "build_network",
    "check_model",
    "find_backbone",
    "pretrained_normalisation",
    "require_channels",
    "summed_over_channels",
]

INPUT_CHANNELS = 3
_OURS = ("small_cnn",)
# SqueezeNet ends in a convolution, not in a linear layer that a head could replace; MNASNet takes no weights
# from files that hold plain tensors.
_LEFT_OUT = ("squeezenet", "mnasnet")
# Their auxiliary outputs exist for training on ImageNet only.
_TORCHVISION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@dataclass(frozen=True)
class Backbone:
    """A network that exists, by the library it comes from and its name there."""

    library: Literal["ours", "torchvision", "timm"]
    name: str

    @property
    def key(self) -> str:
        """A name that is unique over the libraries and fits a file name."""
        return f"{self.library}-{self.name}"

    @property
    def spelling(self) -> str:
        """What names it in `model.backbone` whatever other libraries have."""
        return f"timm/{self.name}" if self.library == "timm" else self.name


@dataclass(frozen=True)
class Normalisation:
    """What pixels in [0, 1] are normalised with: one figure a channel of the model, none for each picture's own."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def find_backbone(name: str) -> Backbone:
    """The network that `model.backbone` names.

    Raises:
        InputError: no library has it; the text gives the nearest names.
    """
    if name in _OURS:
        return Backbone("ours", name)
    if name in _torchvision_names():
        return Backbone("torchvision", name)
    bare = name.removeprefix("timm/")
    if import_timm().is_model(bare):
        return Backbone("timm", bare)
    raise InputError(
        f"model.backbone {name!r} is neither ours ({', '.join(_OURS)}) nor a classifier of torchvision or "
        f"timm.{_nearest(bare)} timm's names are written NAME or timm/NAME."
    )


def build_network(backbone: Backbone, norm: str = "batch") -> nn.Module:
    """The network as its library makes it, with new weights and its own last layer."""
    if backbone.library == "ours":
        return SmallCnn(norm=norm)
    if backbone.library == "timm":
        return cast(nn.Module, import_timm().create_model(backbone.name, pretrained=False))
    if backbone.name.startswith("regnet"):
        # Its constructor computes widths with tensors, which fails where the meta device is the default.
        with torch.device("cpu"):
            return cast(nn.Module, import_torchvision_models().get_model(backbone.name, weights=None))
    arguments = _TORCHVISION_ARGUMENTS.get(backbone.name, {})
    return cast(nn.Module, import_torchvision_models().get_model(backbone.name, weights=None, **arguments))


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """A network with new weights (torch's global generator), our head, and the trunk or its first stages frozen.

    Only the last linear layer is replaced; all before it, dropout too, stays as the library has it.
    Images [n, model.in_channels, s, s] to logits [n, num_classes]. With one channel the network is, of the same
    generator, that with three on a gray image expanded to them (but for timm's that standardise their weights).

    Raises:
        InputError: unknown backbone, one without a single linear layer at its end or, where one channel is asked for,
            a convolution of three at its beginning; one logit for other than two classes; fewer stages than are to be
            frozen.
    """
    one_logit = config.outputs == "sigmoid"
    if one_logit and num_classes != 2:
        raise InputError(
            f"model.outputs=sigmoid is one logit, which tells two classes apart; here are {num_classes}. "
            "Use model.outputs=softmax."
        )
    backbone = find_backbone(config.backbone)
    network = build_network(backbone, config.norm)
    if config.in_channels == 1:
        _narrow_stem(network, backbone)
    name = _last_linear(network, backbone)
    linear = cast(nn.Linear, network.get_submodule(name))
    parent, _, child = name.rpartition(".")
    head = Head(linear.in_features, num_classes, dropout=config.dropout, hidden=config.hidden, one_logit=one_logit)
    setattr(network.get_submodule(parent), child, head)
    _freeze(network, config)
    return network


def summed_over_channels(weight: Tensor) -> Tensor:
    """Weights [out, 3, h, w] of a convolution to those [out, 1, h, w] that give the same for gray expanded to three."""
    return weight.sum(dim=1, keepdim=True)


def require_channels(config: ModelConfig, channels: int, uri: str) -> None:
    """Refuse a data set of coloured pictures for a network of one channel.

    Args:
        channels: of the data set's pictures, 1 or 3.
        uri: of the data set.

    Raises:
        InputError: it has more than the network takes.
    """
    if channels > config.in_channels:
        raise InputError(
            f"model.in_channels=1 takes gray pictures, those of {uri} have {channels} channels. "
            "Use model.in_channels=3, or pack the pictures again with pack.channels=gray."
        )


def _freeze(network: nn.Module, config: ModelConfig) -> None:
    if config.freeze == "backbone":
        freeze_backbone(network)
    try:
        freeze_stages(network, config.frozen_stages)
    except ValueError as error:
        raise InputError(f"model.freeze={config.freeze}: of model.backbone {config.backbone!r}, {error}.") from None


def _narrow_stem(network: nn.Module, backbone: Backbone) -> None:
    """One channel in the first convolution that takes three, in place."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    stem = next((module for module in convolutions if module.in_channels == INPUT_CHANNELS), None)
    if stem is None or stem.groups != 1:
        raise InputError(
            f"model.in_channels=1: model.backbone {backbone.spelling!r} has no convolution of three channels at its "
            "beginning. Use model.in_channels=3, or another backbone."
        )
    with torch.no_grad():
        stem.weight = nn.Parameter(summed_over_channels(stem.weight))
    stem.in_channels = 1


def _last_linear(network: nn.Module, backbone: Backbone) -> str:
    """Dotted name of the layer that gives a network's logits.

    Raises:
        InputError: it has several, or another kind.
    """
    if backbone.library == "timm":
        name = cast(Any, network).default_cfg.get("classifier")
    else:
        name = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    if not isinstance(name, str) or not isinstance(network.get_submodule(name), nn.Linear):
        raise InputError(
            f"model.backbone {backbone.spelling!r} does not end in one linear layer, "
            "so its head cannot be replaced. Choose another backbone."
        )
    return name


def check_model(model: nn.Module, backbone: str, image_size: int, channels: int = INPUT_CHANNELS) -> None:
    """Run shapes (no numbers) through a model: whether it takes square images of this side.

    The model is copied to torch's meta device; it is not changed.

    Args:
        model: from `build_model`, on any device, the meta device too.
        backbone: its name, for the error.
        image_size: side in pixels.
        channels: its `model.in_channels`.

    Raises:
        InputError: it does not, e.g. a vision transformer made for 224 px.
    """
    shapes = _meta_copy(model).eval()
    images = torch.empty(2, channels, image_size, image_size, device="meta")
    try:
        with torch.no_grad():
            logits = shapes(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"model.backbone {backbone!r} does not take images of loader.image_size={image_size} px "
            f"({' '.join(str(error).split())[:200]}). Set loader.image_size to the size it was made for."
        ) from None
    num_classes = find_head(model)[1].num_classes
    assert tuple(logits.shape) == (2, num_classes), f"{backbone} gives {tuple(logits.shape)}"


def pretrained_normalisation(backbone: Backbone) -> Normalisation:
    """What the library's ImageNet weights of a network were trained with.

    Raises:
        InputError: there are none.
    """
    if backbone.library == "timm":
        settings = import_timm().get_pretrained_cfg(backbone.name)
        if settings is not None and settings.has_weights:
            return Normalisation(tuple(settings.mean), tuple(settings.std))
    if backbone.library == "torchvision":
        return _torchvision_normalisation(backbone.name)
    raise InputError(
        f"model.weights=imagenet: there are no pretrained weights for model.backbone {backbone.spelling!r}. "
        "Use model.weights=none, or another backbone."
    )


def _torchvision_normalisation(name: str) -> Normalisation:
    if name in ("googlenet", "inception_v3"):
        # Their weights come from TensorFlow; torchvision's own model shifts its input to this range.
        return Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transforms = import_torchvision_models().get_model_weights(name).DEFAULT.transforms()
    return Normalisation(tuple(transforms.mean), tuple(transforms.std))


def _torchvision_names() -> list[str]:
    models = import_torchvision_models()
    return [name for name in models.list_models(module=models) if not name.startswith(_LEFT_OUT)]


def _nearest(name: str) -> str:
    names = sorted({*_OURS, *_torchvision_names(), *import_timm().list_models()})
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Nearest names: {', '.join(close)}." if close else ""


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy of a model without numbers: tensors of the same shapes on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        shape_only = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(shape_only, False) if isinstance(tensor, nn.Parameter) else shape_only
    return copy.deepcopy(model, memo)
