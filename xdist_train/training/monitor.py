"""The small actor between driver and workers: rank 0 pushes where the run is, the driver reads it and asks to stop.

Knows no training; it holds the last words of both sides.
"""

from __future__ import annotations

from typing import Any

from xdist_train.training.messages import Failure, MonitorView

__all__ = ["RunMonitor"]


class RunMonitor:
    """Run as a Ray actor, one a run; every method answers at once."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._published: dict[str, None] = {}
        self._stop = False
        self._failure: Failure | None = None
        self._starts = 0
        self._epoch_rows: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def begin(self) -> int:
        """A group of workers starts (rank 0 says so); how many did so far."""
        self._starts += 1
        return self._starts

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

    def end_epoch(self, row: dict[str, Any]) -> None:
        """One more row of kind `epoch`."""
        self._epoch_rows.append(row)

    def note(self, text: str) -> None:
        """A warning that the user should read."""
        self._notes.append(text)

    def publish(self, keys: list[str]) -> None:
        """Objects of the run folder that are whole now."""
        self._published.update(dict.fromkeys(keys))

    def ask_stop(self) -> None:
        """The driver wants a checkpoint and an end."""
        self._stop = True

    def read(self) -> MonitorView:
        """What the driver should see now."""
        return MonitorView(
            **self._values,
            epoch_rows=tuple(self._epoch_rows),
            failure=self._failure,
            group_starts=self._starts,
            stopping=self._stop,
            notes=tuple(self._notes),
            published=tuple(self._published),
        )
