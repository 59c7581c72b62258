"""What one rank is doing: marked by its loop, told to the monitor by a thread of its own.

A rank whose marks stand still hangs; one whose thread falls silent too is stopped or dead. The driver judges
(`hang.py`); nothing here knows Ray.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from xdist_train.training.messages import Beat

__all__ = [
    "COMPUTING",
    "MEETING",
    "SAVING",
    "STARTING",
    "START_SLACK_S",
    "WAITING",
    "Pulse",
    "beat_interval",
]

STARTING, WAITING, COMPUTING, MEETING, SAVING = (
    "starting",
    "waiting for data",
    "computing",
    "meeting the other ranks",
    "saving",
)
START_SLACK_S = 300.0
"""More than `failure.hang_s` that a start may stand still: imports, data on its way, a first compiled step."""
_STACK_LINES = 30

Item = TypeVar("Item")


def beat_interval(hang_s: float) -> float:
    """Seconds between two beats."""
    return min(5.0, hang_s / 8)


class Pulse:
    """The marks of the thread that makes it."""

    def __init__(self) -> None:
        self.group = self.epoch = self.step = 0
        self.warm = False
        # One value, since another thread reads it.
        self._now = (STARTING, START_SLACK_S, time.monotonic())
        self._thread = threading.get_ident()
        self._news = threading.Event()

    def mark(self, phase: str, slack_s: float = 0.0) -> None:
        """Something went on: this is what comes next.

        Args:
            slack_s: how much longer than `failure.hang_s` it may take.
        """
        slack_s = slack_s if self.warm else START_SLACK_S
        shorter = slack_s < self._now[1]
        self._now = (phase, slack_s, time.monotonic())
        if shorter:
            self._news.set()  # a rank that is stopped now is judged by what it told last

    def end_step(self) -> None:
        """A first step may compile or choose kernels; none that follows has this excuse."""
        if not self.warm:
            self.warm = True
            self.mark(COMPUTING)

    def at(self, epoch: int, step: int) -> None:
        """The position in training."""
        self.epoch, self.step = epoch, step

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, marked as they come."""
        iterator = iter(items)
        while True:
            self.mark(WAITING)
            try:
                item = next(iterator)
            except StopIteration:
                self.mark(MEETING)
                return
            self.mark(COMPUTING)
            yield item

    def beat(self, rank: int, node: str, stack_after_s: float) -> Beat:
        """What to tell now; with the thread's stack when it has stood still for so long."""
        phase, slack_s, since = self._now
        idle_s = time.monotonic() - since
        return Beat(
            rank=rank,
            host=socket.gethostname(),
            node=node,
            pid=os.getpid(),
            group=self.group,
            phase=phase,
            epoch=self.epoch,
            step=self.step,
            idle_s=idle_s,
            slack_s=slack_s,
            stack=self._stack() if idle_s > stack_after_s else "",
        )

    @contextmanager
    def told(self, tell: Callable[[Beat], object], rank: int, node: str, hang_s: float) -> Iterator[None]:
        """Tell beats from a thread of its own for the block."""
        ended, interval = False, beat_interval(hang_s)

        def run() -> None:
            while True:
                self._news.clear()
                if ended:
                    return
                tell(self.beat(rank, node, hang_s / 2))
                self._news.wait(interval)

        thread = threading.Thread(target=run, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended = True
            self._news.set()
            thread.join()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)
        lines = "".join(traceback.format_stack(frame)).splitlines() if frame else []
        return "\n".join(lines[-_STACK_LINES:])
