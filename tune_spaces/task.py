"""One training of many: a search's trial or a part of a repetition, and what becomes of one that came to no end.

Whoever has such trainings to do is a `Work`; `tuner.py` runs them. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from cluster.runs import RunFolder
from xdist_train.config import Config
from xdist_train.training.messages import Ending

__all__ = ["TRIED_AGAIN", "Fate", "Task", "Work", "failure_kind", "fate_of", "launch_config"]

_WAIT_S = 3600.0
# Failures that say nothing of a configuration: its training goes back and is tried once more in this start. After
# that, what is the cluster's stops all, which can go on; lost processes may be the configuration's fault after all.
_CLUSTERS_FAULT = ("no_room", "storage", "storage_refused")
TRIED_AGAIN = (*_CLUSTERS_FAULT, "lost_workers", "hang")
_MOST_TRIES = 2

Fate = Literal["settled", "again", "hopeless"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training that is to be run."""

    name: str
    """Of its run folder."""
    place: str
    """Key of the folder of its run folder: trials, repeats or parts."""
    number: int = 0
    """Of the trial."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of the trial."""
    config: Config
    started: float = 0.0
    """By the clock that never goes back."""


class Work(Protocol):
    """Who has tasks to do. Methods may be called from several threads."""

    stopping: bool
    """Whether no more tasks are to start, and those at work are to stop."""
    trouble: str
    """Why it stops, where nobody asked for it."""

    @property
    def folder(self) -> RunFolder:
        """Where it is kept."""

    def next(self) -> Task | None:
        """What to run now; None if there is no room, or nothing more. It counts as at work until `end`."""

    def is_pruned(self, name: str) -> bool:
        """Whether it was decided that a task stops early."""

    def report(self, name: str, epochs: int, figure: float | None) -> Ending | None:
        """A task's metric on val after so many epochs; whether it is to end, and as what."""

    def end(self, name: str, reason: str = "") -> None:
        """A task is at work no more; what came of it is in its run folder, or known as `reason`."""

    def beat(self) -> None:
        """A sign of life for its record, now and then."""


def launch_config(config: Config, name: str, *, use_gpu: bool | None) -> Config:
    """A configuration as one of many launches has it: resumable, without maps, patient where others use the cluster.

    Args:
        use_gpu: what `auto` stands for; a GPU that is away for a while must not make one run without. None leaves it.
    """
    scale = replace(config.scale, wait_s=config.scale.wait_s or _WAIT_S)
    if scale.use_gpu == "auto" and use_gpu is not None:
        scale = replace(scale, use_gpu="yes" if use_gpu else "no")
    run = replace(config.run, name=name, resume="auto")
    return replace(config, run=run, scale=scale, cam=replace(config.cam, after=False))


def failure_kind(reason: str) -> str:
    """Short name of what a training failed with."""
    return reason.partition(":")[0]


def fate_of(status: str, reason: str, tries: int) -> Fate:
    """What becomes of a task that is at work no more.

    Args:
        tries: how often this start has begun it; 0 where it is to be kept for later in any case.

    Returns:
        `settled`: that was its end. `again`: to be done again. `hopeless`: the same, but not in this start.
    """
    kind = failure_kind(reason) if status == "failed" else ""
    if status != "stopped" and kind not in TRIED_AGAIN:
        return "settled"
    if tries < _MOST_TRIES:
        return "again"
    return "settled" if kind and kind not in _CLUSTERS_FAULT else "hopeless"
