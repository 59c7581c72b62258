"""Where a network's first weights come from: nowhere, ImageNet, or another run.

The driver resolves `model.weights` once, into one safetensors object under the storage's `weights/`,
named by its sha256; workers read that object and nothing else. No pickle reaches a worker.

    weights/<sha256>.safetensors   the tensors
    weights/<backbone key>.json    the StoredWeights of a network's ImageNet weights
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cluster.errors import InputError, StoreError
from cluster.store import Store, open_store
from xdist_train.models.backbones import (
    INPUT_CHANNELS,
    Backbone,
    Normalisation,
    find_backbone,
    summed_over_channels,
)
from xdist_train.models.export import DESCRIPTION_KEY, MODEL_FOLDER, WEIGHTS_KEY, ModelDescription
from xdist_train.models.heads import find_head
from xdist_train.models.pretrained import Pretrained, download_weights, install_hint, installed_weights
from xdist_train.models.tensors import WEIGHTS_LIMIT_BYTES, parse_tensors

__all__ = ["StoredWeights", "load_weights", "read_weights", "require_fit", "resolve_weights", "run_weights"]

_FOLDER = "weights"
_SHOWN = 3


@dataclass(frozen=True)
class StoredWeights:
    """A safetensors object in the store; plain values that travel to workers.

    `normalisation` is what the weights were trained with, None where that is not known.
    """

    sha256: str
    source: str
    normalisation: Normalisation | None = None

    @property
    def key(self) -> str:
        """Key of the tensors under the storage root."""
        return f"{_FOLDER}/{self.sha256}.safetensors"


def resolve_weights(weights: str, backbone: str, store: Store) -> StoredWeights | None:
    """Bring what `model.weights` names into the store; None for `none`.

    Args:
        weights: `none`, `imagenet`, or a run folder, a model folder or a safetensors file.
        backbone: `model.backbone`.
        store: of `storage.uri`.

    Raises:
        InputError: nothing there, or no way to ImageNet weights without a network.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        return _imagenet_weights(find_backbone(backbone), store)
    return _other_weights(weights, store)


def read_weights(store: Store, stored: StoredWeights) -> dict[str, Tensor]:
    """The tensors, checked against their sha256.

    Raises:
        StoreError: the object changed in the store.
        InputError: it is not a safetensors file.
    """
    data = store.read(stored.key, WEIGHTS_LIMIT_BYTES)
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise StoreError(f"{store.locate(stored.key)} is damaged (other sha256). Delete it and start again.")
    return parse_tensors(data, store.locate(stored.key))


def require_fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that do not fit a model's trunk; its head may differ. Shapes suffice: a meta model will do.

    Args:
        model: from `build_model`.
        tensors: by name in the state dict.
        source: where they came from, for the error.

    Raises:
        InputError: the trunk's names or shapes differ; the first ones are named.
    """
    prefix = f"{find_head(model)[0]}."
    wanted = model.state_dict()
    tensors = _with_stem_of(wanted, tensors)
    trunk = [name for name in [*wanted, *tensors] if not name.startswith(prefix)]
    misfits = [text for name in dict.fromkeys(trunk) if (text := _misfit(name, wanted, tensors))]
    if misfits:
        raise InputError(
            f"model.weights: the tensors of {source} do not fit model.backbone: {'; '.join(misfits[:_SHOWN])}"
            f"{f' and {len(misfits) - _SHOWN} more' if len(misfits) > _SHOWN else ''}. "
            "Give weights of the same backbone (and model.norm, model.in_channels), or model.weights=none."
        )


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Fill a model's trunk, and its head where the tensors fit.

    Where a convolution takes one channel and the tensors' takes three, they are summed over the channels.

    Args:
        model: from `build_model`; changed in place.
        tensors: by name in the state dict.
        source: where they came from, for the error.

    Returns:
        Names of the head's tensors that were left new.

    Raises:
        InputError: as `require_fit`; the model is then as it was.
    """
    require_fit(model, tensors, source)
    wanted = model.state_dict()
    tensors = _with_stem_of(wanted, tensors)
    fitting = {name: tensors[name] for name in wanted if not _misfit(name, wanted, tensors)}
    model.load_state_dict(fitting, strict=False)
    return [name for name in wanted if name not in fitting]


def run_weights(name: str, store: Store) -> StoredWeights:
    """Download a network's ImageNet weights by its library and put them into a store.

    Args:
        name: as in `model.backbone`.
        store: of the storage that runs will use.

    Raises:
        InputError: unknown name, no such weights, or no network.
    """
    backbone = find_backbone(name)
    return _put_imagenet(store, backbone, installed_weights(backbone) or download_weights(backbone))


def _imagenet_weights(backbone: Backbone, store: Store) -> StoredWeights:
    index = f"{_FOLDER}/{backbone.key}.json"
    if store.exists(index):
        return _stored_from_json(store.read_json(index), store.locate(index))
    installed = installed_weights(backbone)
    if installed:
        return _put_imagenet(store, backbone, installed)
    raise InputError(
        f"model.weights=imagenet: {store.locate(_FOLDER)} has no weights of {backbone.spelling!r}, and this "
        f"machine neither.{install_hint(backbone)} Run `xdist-train weights {backbone.spelling} --out "
        f"{store.uri}` on a machine with a network."
    )


def _other_weights(uri: str, store: Store) -> StoredWeights:
    """A run folder, a `model` folder, or one file: its tensors copied, its normalisation if described."""
    if uri.endswith(".safetensors"):
        name = uri.rpartition("/")[2]
        return _copy(open_store(uri.removesuffix(name) or "."), name, uri, store)
    root = open_store(uri)
    for folder in (root.child(MODEL_FOLDER), root):
        if folder.exists(WEIGHTS_KEY):
            return _copy(folder, WEIGHTS_KEY, uri, store)
    raise InputError(
        f"model.weights {uri!r} is neither none nor imagenet, and holds no {MODEL_FOLDER}/{WEIGHTS_KEY} or "
        f"{WEIGHTS_KEY}. Give a run folder, its model folder, or a safetensors file."
    )


def _copy(folder: Store, name: str, uri: str, store: Store) -> StoredWeights:
    if not folder.exists(name):
        raise InputError(f"model.weights {uri!r}: there is no such file.")
    data = folder.read(name, WEIGHTS_LIMIT_BYTES)
    parse_tensors(data, uri)
    return _put(store, data, uri, _described_normalisation(folder, hashlib.sha256(data).hexdigest()))


def _described_normalisation(folder: Store, sha256: str) -> Normalisation | None:
    if not folder.exists(DESCRIPTION_KEY):
        return None
    where = folder.locate(DESCRIPTION_KEY)
    description = ModelDescription.from_json(folder.read_json(DESCRIPTION_KEY), where)
    if description.weights_sha256 != sha256:
        return None
    return Normalisation(description.preprocessing.mean, description.preprocessing.std)


def _put_imagenet(store: Store, backbone: Backbone, pretrained: Pretrained) -> StoredWeights:
    from safetensors.torch import save

    data = save({name: tensor.detach().contiguous().clone() for name, tensor in pretrained.tensors.items()})
    stored = _put(store, data, f"imagenet ({pretrained.source})", pretrained.normalisation)
    store.write_json(f"{_FOLDER}/{backbone.key}.json", dataclasses.asdict(stored))
    return stored


def _put(store: Store, data: bytes, source: str, normalisation: Normalisation | None) -> StoredWeights:
    stored = StoredWeights(hashlib.sha256(data).hexdigest(), source, normalisation)
    if not store.exists(stored.key):
        store.write(stored.key, data)
    return stored


def _stored_from_json(values: Any, where: str) -> StoredWeights:
    try:
        normalisation = Normalisation(*(tuple(values["normalisation"][name]) for name in ("mean", "std")))
        return StoredWeights(values["sha256"], values["source"], normalisation)
    except (KeyError, TypeError) as error:
        reason = f"{where} is damaged ({error}). Delete it and run `xdist-train weights` again."
        raise StoreError(reason) from None


def _with_stem_of(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those of a convolution of three channels summed where one channel is wanted."""
    adapted = dict(tensors)
    for name in wanted.keys() & tensors.keys():
        here, there = wanted[name].shape, tensors[name].shape
        if len(here) == 4 and here[1] == 1 and there == (here[0], INPUT_CHANNELS, *here[2:]):
            adapted[name] = summed_over_channels(tensors[name])
    return adapted


def _misfit(name: str, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Why a tensor cannot be taken; empty if it can."""
    if name not in tensors:
        return f"{name} is missing"
    if name not in wanted:
        return f"{name} is not in the network"
    there, here = tuple(tensors[name].shape), tuple(wanted[name].shape)
    return "" if there == here else f"{name} has shape {list(there)}, the network's is {list(here)}"
