"""The moving average of a model's weights, which is judged and published in place of the weights that learn.

Knows no optimiser and no position: the loop says how many steps were taken.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["WeightAverage", "decay_after"]


def decay_after(steps: int, most: float) -> float:
    """Share of the old average that stays: min(most, (1 + steps) / (10 + steps)), as TensorFlow and timm warm up."""
    return min(most, (1 + steps) / (10 + steps))


class WeightAverage:
    """A model's twin whose parameters and BatchNorm figures are averages over steps; other buffers are copied.

    Args:
        model: on its device, with the weights to start from.
        decay: share of the old average that stays at a step, once the warm-up is over.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        figures = _figures(model)
        self._moving = [*self.model.parameters(), *_figures(self.model)]
        self._sources = [*model.parameters(), *figures]
        averaged = {id(buffer) for buffer in figures}
        pairs = zip(self.model.buffers(), model.buffers(), strict=True)
        self._copied = [pair for pair in pairs if id(pair[1]) not in averaged]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Follow the weights after a step, the `steps`-th of the run; without a wait for the device."""
        torch._foreach_lerp_(self._moving, self._sources, 1 - decay_after(steps, self._decay))
        for mine, source in self._copied:
            mine.copy_(source)


def _figures(model: nn.Module) -> list[torch.Tensor]:
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [figure for norm in norms for figure in (norm.running_mean, norm.running_var) if figure is not None]
