"""Savings on their way into the run folder, behind the loop's back: one after the other, in the loop's order.

A saving's parts appear as model, history, checkpoint: so a checkpoint that can be resumed never says that a
model was selected which is not there. Ray gives the thread (its asynchronous upload) and hears of an error.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.runs import CHECKPOINTS, RunFolder
from cluster.store import RETRY_S
from xdist_train.training.publish import publish_history, publish_model
from xdist_train.training.pulse import SAVING

if TYPE_CHECKING:
    from xdist_train.training.assembly import Assembly
    from xdist_train.training.loop import Saving

__all__ = ["Uploads"]

_ON_THEIR_WAY = 2
"""One being written and one that waits: what memory is given for."""
_NICE = 10


class Uploads:
    """Rank 0's savings.

    Args:
        published: told the keys that may be read from now on.
        failed: told why a saving could not be kept.
    """

    def __init__(
        self,
        folder: RunFolder,
        assembly: Assembly,
        *,
        published: Callable[[list[str]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._folder, self._assembly = folder, assembly
        self._published, self._failed = published, failed
        self._room = threading.Semaphore(_ON_THEIR_WAY)
        self._error: Exception | None = None
        self._moved = 0

    def make_room(self) -> None:
        """Wait until one more saving may be on its way; a slow storage is no standstill while something moves.

        Raises:
            Exception: what an earlier one met.
        """
        moved = self._moved
        while not self._room.acquire(timeout=1):
            if moved != self._moved:
                moved = self._moved
                self._assembly.pulse.mark(SAVING, RETRY_S)
        if self._error is not None:
            self._room.release()
            raise self._error

    def wait(self) -> None:
        """Wait until all are kept.

        Raises:
            Exception: what one of them met.
        """
        for _ in range(_ON_THEIR_WAY):
            self.make_room()
        self._room.release(_ON_THEIR_WAY)

    def keep(self, saving: Saving) -> None:
        """Put one saving into the run folder; takes the room that `make_room` made."""
        try:
            _stand_back()
            self._keep(saving)
        except Exception as error:
            self._error = error
            self._failed(error)
            raise
        finally:
            self._room.release()

    def _keep(self, saving: Saving) -> None:
        folder, snapshot = self._folder, saving.snapshot
        assert snapshot is not None
        folder.check_owner()
        if saving.selection is not None:
            self._published(publish_model(folder, snapshot.judged, self._assembly, saving.selection))
            self._move()
        if saving.history is not None:
            self._published(publish_history(folder, saving.history))
            self._move()
        folder.check_owner()
        snapshot.upload(folder.store.child(f"{CHECKPOINTS}/{saving.name}"), self._move)
        snapshot.release()

    def _move(self) -> None:
        self._moved += 1


def _stand_back() -> None:
    """Where cores are few, the steps come first: this thread alone gets a lower priority (Linux)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
