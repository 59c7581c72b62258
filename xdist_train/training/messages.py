"""What crosses between driver, monitor and workers: plain values. Imports nothing heavy; the monitor starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["STOPPED", "Beat", "Ending", "Failure", "MonitorView", "Progress"]

Ending = Literal["stopped", "pruned"]
"""The status of a run that is asked to end before its time."""
STOPPED = "stopped"
"""Kind of the failure that is none: the user's wish to stop, heard while there were no workers."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is; speeds and loss are since the last row of kind `step`."""

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    loss: float
    images_per_s: float
    step_s: float
    data_wait_share: float
    new_steps: int
    """Optimiser steps since this process's last Progress."""
    new_images: int
    """Images that all ranks trained on since then."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A rank's sign of life: where it runs, what it does, and for how long it has done nothing else."""

    rank: int
    host: str
    node: str
    """Ray's id of the node."""
    pid: int
    phase: str
    epoch: int
    step: int
    group: int
    """Number of its group, from 1; 0 before the ranks have agreed on it."""
    idle_s: float
    """Seconds since the last mark, when the beat was sent."""
    slack_s: float
    """Seconds more than `failure.hang_s` that this phase may take."""
    stack: str = ""
    """Stack of the training thread, once it has stood still for a while."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What would fail again: returned by the loop or left with the monitor, so that nobody tries again."""

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
    groups: tuple[dict[str, Any], ...] = ()
    """Attempt, number of workers and start of each group."""
    stopping: bool = False
    notes: tuple[str, ...] = ()
    """Warnings for the user: rank 0's, and what the driver noticed."""
    published: tuple[str, ...] = ()
    beats: tuple[tuple[Beat, float], ...] = ()
    """The last beat of each rank at work, and how many seconds ago it came."""
    waiting_s: float | None = None
    """Seconds without any group of workers at work: before the first begins, or since one was lost."""
    short_of_room: bool = False
    """Whether Ray found no room for them."""
