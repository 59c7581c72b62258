"""The shape of one group of workers, as plain numbers, so that tests build any topology."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """Place of one worker among all; ranks count from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node_rank: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, f"rank {self.rank} outside a world of {self.size}"

    @property
    def is_first(self) -> bool:
        """Whether this worker speaks for the group."""
        return self.rank == 0
