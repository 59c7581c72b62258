"""Mixup: a picture and its label become those of a pair (Zhang et al. 2018). Pure.

Pairs are of one micro batch, so a step stays the same on any number of workers, and the weights of its images' losses
add up as before: every label counts as a first one and as a second one, once each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Mix", "draw_mix"]


class Mix(NamedTuple):
    """How a micro batch is mixed.

    share: of each picture itself, in [0, 1]. partners: int64 [n], a permutation: whose picture gives the rest.
    """

    share: float
    partners: Tensor

    def pictures(self, pixels: Tensor) -> Tensor:
        """Of float [n, C, S, S], the same."""
        return torch.lerp(pixels[self.partners], pixels, self.share)

    def losses(self, mine: Tensor, partners: Tensor) -> Tensor:
        """Of each picture [n]: by its own label and by its partner's."""
        return torch.lerp(partners, mine, self.share)


def draw_mix(alpha: float, count: int, device: torch.device) -> Mix:
    """The mix of `count` pictures, from torch's generator on the CPU; `alpha` of Beta(alpha, alpha), above 0."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return Mix(share, torch.randperm(count).to(device, non_blocking=True))
