"""What one image costs a network, counted on shapes alone: nothing is computed and no memory is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from xdist_train.config import Config
from xdist_train.models.backbones import build_model
from xdist_train.models.freezing import set_train_mode

__all__ = ["NetworkCost", "network_cost"]

_IMAGES = 2
"""Of the batch that is counted; BatchNorm refuses one."""


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, and by image: floating-point operations and elements of activations.

    `flops` are those of a training pass, forward and backward as the network is frozen; `elements` are all
    activations, `saved_elements` those that are kept for the backward pass. `modules` do something themselves.
    """

    parameters: int
    trainable: int
    modules: int
    flops: float
    elements: float
    saved_elements: float


def network_cost(config: Config, num_classes: int) -> NetworkCost:
    """Counted of the network that a configuration names, as it is frozen when training begins."""
    with torch.device("meta"):
        model = build_model(config.model, num_classes)
        side = config.loader.image_size
        images = torch.empty(_IMAGES, config.model.in_channels, side, side)
    set_train_mode(model)
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    counter = FlopCounterMode(display=False)
    with counter, _saved(model) as saved:
        model(images).sum().backward()
    model.requires_grad_(True)
    with _saved(model) as everything:
        model(images)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return NetworkCost(
        parameters=sum(sizes.values()),
        trainable=sum(size for name, size in sizes.items() if trains[name]),
        modules=sum(not any(module.children()) for module in model.modules()),
        flops=counter.get_total_flops() / _IMAGES,
        elements=sum(everything.values()) / _IMAGES,
        saved_elements=sum(saved.values()) / _IMAGES,
    )


@contextmanager
def _saved(model: nn.Module) -> Iterator[dict[int, int]]:
    """Elements of what is kept for a backward pass, by storage, without the network's own tensors."""
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    kept = []  # a storage that is gone may give its address to another

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in own:
            kept.append(tensor.untyped_storage())
            whole = tensor._base if tensor._base is not None else tensor
            found[key] = max(found.get(key, 0), whole.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _storage(tensor: Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)
