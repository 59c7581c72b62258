"""What ranks exchange outside the gradient: small numbers, rows of unequal length, sums.

Every function is a no-op on a world of one and must otherwise be called by all ranks alike.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.world import World

__all__ = ["gather_rows", "gather_values", "sum_over_ranks"]


def gather_values(values: Tensor, world: World) -> Tensor:
    """[k] on each rank -> [world size, k] on all."""
    if world.size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """[n_r, ...] on rank r -> [sum of n_r, ...] on all, in rank order; some n_r may be 0."""
    if world.size == 1:
        return rows
    counts = gather_values(torch.tensor([rows.shape[0]], device=rows.device), world)[:, 0].tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    gathered = gather_values(padded, world)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """[k] on each rank -> their sum [k] on all; the tensor itself is changed."""
    if world.size > 1:
        dist.all_reduce(values)
    return values
