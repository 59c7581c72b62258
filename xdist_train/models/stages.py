"""A network's stages from its input to its head, found in the tree of its modules. Knows no network by name.

A stage is what a network's makers put side by side: resnet's `layer1` to `layer4`, a transformer's blocks, what lies
between two poolings of VGG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from torch import nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from xdist_train.models.heads import find_head

__all__ = ["find_stages", "parameters_of", "part_of"]

_Part: TypeAlias = tuple[str, nn.Module | nn.Parameter]
"""A piece of a network, by its dotted name: a module, or a parameter that lies beside modules."""


def find_stages(model: nn.Module) -> list[list[str]]:
    """Everything but the head, in the order of the modules, as the dotted names of each stage's parts.

    The model is opened as long as one part alone is made of blocks; then each part of blocks is a stage, together with
    what leads to it (a downsampling, a transition). What stands before the first is a stage, the stem; what follows the
    last is one if it has more weights than a normalisation's. Without blocks a stage ends with a pooling. A part is a
    module, or a parameter outside of modules (a class token).
    """
    head = find_head(model)[0]
    parts = [part for part in _open("", model) if part[0] != head]
    while holder := next((part for part in parts if head.startswith(f"{part[0]}.")), None):
        parts = [part for part in _opened(parts, holder) if part[0] != head]
    for is_large in (_has_blocks, _has_layers):
        while len(large := [part for part in parts if is_large(part)]) == 1:
            parts = _opened(parts, large[0])
        if large:
            return _around(parts, is_large)
    return _by_pooling(parts)


def part_of(model: nn.Module, name: str) -> nn.Module | nn.Parameter:
    """A stage's part by its name."""
    parent, _, child = name.rpartition(".")
    return cast("nn.Module | nn.Parameter", getattr(model.get_submodule(parent), child))


def parameters_of(model: nn.Module, stage: list[str]) -> list[nn.Parameter]:
    """The parameters of a stage."""
    return _weights([(name, part_of(model, name)) for name in stage])


def _around(parts: list[_Part], is_large: Callable[[_Part], bool]) -> list[list[str]]:
    stages: list[list[str]] = []
    waiting: list[_Part] = []
    for part in parts:
        if is_large(part):
            if not stages and _weights(waiting):
                stages.append(_names(waiting))
                waiting = []
            stages.append([*_names(waiting), part[0]])
            waiting = []
        elif stages and not waiting and not _weights([part]):
            stages[-1].append(part[0])  # what only acts, such as a pooling, belongs to what is before it
        else:
            waiting.append(part)
    return _with_rest(stages, waiting)


def _by_pooling(parts: list[_Part]) -> list[list[str]]:
    stages: list[list[str]] = []
    waiting: list[_Part] = []
    for part in parts:
        waiting.append(part)
        if isinstance(part[1], _MaxPoolNd | _AvgPoolNd) and _weights(waiting):
            stages.append(_names(waiting))
            waiting = []
    return _with_rest(stages, waiting)


def _with_rest(stages: list[list[str]], rest: list[_Part]) -> list[list[str]]:
    """The last parts are a stage if they hold more than a normalisation."""
    if not stages or any(weight.ndim > 1 for weight in _weights(rest)):
        return [*stages, _names(rest)]
    return [*stages[:-1], [*stages[-1], *_names(rest)]]


def _open(name: str, module: nn.Module) -> list[_Part]:
    prefix = f"{name}." if name else ""
    own: list[_Part] = [(f"{prefix}{key}", value) for key, value in module.named_parameters(recurse=False)]
    return own + [(f"{prefix}{key}", child) for key, child in module.named_children()]


def _opened(parts: list[_Part], chosen: _Part) -> list[_Part]:
    """The parts with one of them replaced by its own."""
    name, module = chosen
    assert isinstance(module, nn.Module)
    return [piece for part in parts for piece in (_open(name, module) if part[0] == name else [part])]


def _has_layers(part: _Part) -> bool:
    return bool(_layers(part[1]))


def _has_blocks(part: _Part) -> bool:
    return any(_layers(child) for child in _layers(part[1]))


def _layers(item: nn.Module | nn.Parameter) -> list[nn.Module]:
    """The children of a module that have parameters."""
    if not isinstance(item, nn.Module):
        return []
    return [child for child in item.children() if next(child.parameters(), None) is not None]


def _weights(parts: list[_Part]) -> list[nn.Parameter]:
    items = [item for _, item in parts]
    return [weight for item in items for weight in (item.parameters() if isinstance(item, nn.Module) else [item])]


def _names(parts: list[_Part]) -> list[str]:
    return [name for name, _ in parts]
