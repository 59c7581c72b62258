"""The small actor between driver and workers: rank 0 pushes where the run is, the driver reads it and asks to stop.

Knows no training; it holds the last words of both sides.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from xdist_train.training.loop import Progress
from xdist_train.training.state import Failure

__all__ = ["MonitorView", "RunMonitor"]


@dataclass(frozen=True)
class MonitorView:
    """What the driver sees: the newest progress, the last epoch's row, failure, and objects published so far."""

    phase: str = "starting workers"
    progress: Progress | None = None
    epoch_row: dict[str, Any] | None = None
    failure: Failure | None = None
    attempt: int = 0
    group_starts: int = 0
    published: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


class RunMonitor:
    """Run as a Ray actor, one a run; every method answers at once."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._published: dict[str, None] = {}
        self._stop = False
        self._failure: Failure | None = None
        self._starts = 0

    def begin(self) -> Failure | None:
        """A group of workers starts (rank 0 says so); a failure that an earlier group met ends it at once."""
        self._starts += 1
        return self._failure

    def push(self, **values: Any) -> bool:
        """Newest values of `MonitorView` fields; whether the run is asked to stop."""
        self._values.update(values)
        return self._stop

    def fail(self, failure: Failure) -> None:
        """A rank met what would fail again; the first word counts."""
        self._failure = self._failure or failure

    def failure(self) -> Failure | None:
        """What a rank of this run met, if anything."""
        return self._failure

    def publish(self, keys: list[str]) -> None:
        """Objects of the run folder that are whole now."""
        self._published.update(dict.fromkeys(keys))

    def ask_stop(self) -> None:
        """The driver wants a checkpoint and an end."""
        self._stop = True

    def read(self) -> dict[str, Any]:
        """Fields of a MonitorView, as plain values that need no import to unpickle but ours."""
        view = MonitorView(
            **self._values, failure=self._failure, group_starts=self._starts, published=tuple(self._published)
        )
        return {name: getattr(view, name) for name in asdict(view)}
