"""What crosses between driver, monitor and workers: plain values. Imports nothing heavy; the monitor starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Failure", "MonitorView", "Progress"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the live line shows; figures are since the last row of kind `step`."""

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    loss: float
    images_per_s: float
    data_wait_share: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What would fail again: returned by the loop, never raised, so that nobody tries again."""

    kind: str
    message: str
    rank: int = 0
    step: int = -1


@dataclass(frozen=True)
class MonitorView:
    """What the driver sees: the newest progress, the rows of epochs, failure, and objects published so far."""

    phase: str = "starting workers"
    progress: Progress | None = None
    epoch_rows: tuple[dict[str, Any], ...] = ()
    failure: Failure | None = None
    group_starts: int = 0
    stopping: bool = False
    notes: tuple[str, ...] = ()
    """Warnings of rank 0, for the user."""
    published: tuple[str, ...] = ()
