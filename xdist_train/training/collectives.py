"""What ranks exchange outside the gradient: small numbers, rows of unequal length, averaged buffers.

Every function is a no-op on a world of one and must otherwise be called by all ranks alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.world import World

__all__ = ["average_buffers", "gather_rows", "gather_values"]


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


def average_buffers(buffers: Sequence[Tensor], world: World) -> None:
    """Each tensor becomes its mean over ranks, in place (BatchNorm's running figures)."""
    if world.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world.size
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
