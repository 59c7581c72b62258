"""BatchNorm's running mean and variance, moved once a step by all its micro batches, whichever rank ran them.

Torch moves them at each forward, so in usual DDP training they depend on how many ranks share a step. Knows no loader
and no loss.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cluster.world import World
from xdist_train.training.collectives import sum_over_ranks

__all__ = ["RunningFigures"]


class RunningFigures:
    """Those of the modules of a model that are in train mode at a step.

    n micro batches move them by 1 - (1 - momentum)^n towards the mean of the micro batches' own figures: as far as n
    forwards on one rank would, each micro batch weighing the same.

    Args:
        model: on its device; the momentum of its modules is 1 from now on, so that after a forward they hold that
            micro batch's own figures.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self._world = world
        self._momentum: dict[_NormBase, float] = {}
        for module in model.modules():
            # One without a momentum averages over all that it ever saw.
            if isinstance(module, _NormBase) and module.running_mean is not None and module.momentum is not None:
                self._momentum[module] = module.momentum
                module.momentum = 1.0
        self._moving: list[_NormBase] = []
        self._buffers: list[Tensor] = []
        self._kept = self._before = self._sum = torch.empty(0)

    def begin(self) -> None:
        """A step begins; the model's modes are set."""
        moving = [module for module in self._momentum if module.training]
        if moving != self._moving:
            self._moving = moving
            self._buffers = [buffer for module in moving for buffer in _buffers(module)]
            kept = [torch.full_like(each, 1 - self._momentum[module]) for module in moving for each in _buffers(module)]
            self._kept = torch.cat(kept) if kept else torch.empty(0)
        if moving:
            self._before = torch.cat(self._buffers)
            self._sum = torch.zeros_like(self._before)

    def add(self) -> None:
        """A micro batch went through the model."""
        if self._moving:
            self._sum += torch.cat(self._buffers)

    def end(self, count: int) -> None:
        """This rank's `count` micro batches of the step are done; collective."""
        if not self._moving:
            return
        sums = sum_over_ranks(torch.cat([self._sum, self._sum.new_tensor([count])]), self._world)
        total, mean = sums[-1], sums[:-1] / sums[-1]
        figures = torch.lerp(mean, self._before, self._kept**total)
        parts = figures.split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, parts)
        if self._world.size == 1:  # the module has counted all of them itself
            return
        for module in self._moving:
            cast(Tensor, module.num_batches_tracked).add_((total - count).long())


def _buffers(module: _NormBase) -> tuple[Tensor, Tensor]:
    return cast(Tensor, module.running_mean), cast(Tensor, module.running_var)
