"""The small actor between driver and workers: rank 0 pushes where the run is, the driver reads it and asks to stop.

Knows no training; it holds the last words of both sides.
"""

from __future__ import annotations

import time
from typing import Any

from xdist_train.training.messages import Beat, Failure, MonitorView

__all__ = ["RunMonitor"]

_MOST_NOTES = 200


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
        self._beats: dict[int, tuple[Beat, float]] = {}
        self._groups: list[dict[str, Any]] = []
        self._lost_at: float | None = time.monotonic()
        self._short = self._ending = False

    def begin(self) -> int:
        """A group of workers starts (rank 0 says so); its number, from 1."""
        self._starts += 1
        self._beats.clear()
        self._lost_at, self._short = None, False
        return self._starts

    def join(self, attempt: int, workers: int) -> None:
        """The group that began last has agreed on its attempt."""
        self._groups.append({"attempt": attempt, "workers": workers, "started": time.time()})

    def lose(self, text: str = "") -> None:
        """The group of workers is at its end, whatever its ranks still say; another will be started."""
        if text:
            self.note(text)
        self._beats.clear()
        self._lost_at = time.monotonic()

    def want_room(self) -> None:
        """There is no room for the workers now."""
        self._short = True

    def beat(self, beat: Beat) -> None:
        """A rank's sign of life; those of groups that have ended are not heard."""
        if self._lost_at is None and beat.group in (0, self._starts):
            self._beats[beat.rank] = beat, time.monotonic()

    def leave(self, rank: int) -> None:
        """A rank has done its work: no more signs of life are expected."""
        self._beats.pop(rank, None)

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
        if len(self._notes) < _MOST_NOTES:
            self._notes.append(text)
        elif len(self._notes) == _MOST_NOTES:
            self._notes.append("there were more warnings than are kept")

    def publish(self, keys: list[str]) -> None:
        """Objects of the run folder that are whole now."""
        self._published.update(dict.fromkeys(keys))

    def ask_stop(self, *, for_good: bool = True) -> None:
        """The driver wants a checkpoint and an end; not for good if another group is to go on elsewhere."""
        self._stop, self._ending = True, self._ending or for_good

    def ending(self) -> bool:
        """Whether the driver wants an end for good."""
        return self._ending

    def go_on(self) -> None:
        """The group has ended behind its checkpoint; another will be started, unless an end is wanted for good."""
        self._stop = self._ending
        self.lose()

    def read(self) -> MonitorView:
        """What the driver should see now."""
        now = time.monotonic()
        return MonitorView(
            **self._values,
            epoch_rows=tuple(self._epoch_rows),
            failure=self._failure,
            group_starts=self._starts,
            groups=tuple(self._groups),
            stopping=self._stop,
            notes=tuple(self._notes),
            published=tuple(self._published),
            beats=tuple((beat, now - came) for beat, came in self._beats.values()),
            waiting_s=None if self._lost_at is None else now - self._lost_at,
            short_of_room=self._short,
        )
