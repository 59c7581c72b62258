"""Workers whose loader blocks for ever, once: what a rank runs instead of `run_worker`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloading.loading.batch import Batch
from dataloading.loading.loader import Loader
from xdist_train.training.worker import run_worker

__all__ = ["run_blocked_worker"]


def run_blocked_worker(values: dict[str, Any]) -> dict[str, Any]:
    """`run_worker`, but the first loader of this run to reach epoch 1, step 4 stands still there."""
    once = Path(values["order"].run_uri) / "blocked"
    load = Loader.load

    def blocking_load(self: Loader, requests: Any) -> Iterator[Batch]:
        for batch in load(self, requests):
            if (batch.epoch, batch.step) == (1, 4) and _first(once):
                wait_for_a_disk_that_never_answers()
            yield batch

    Loader.load = blocking_load  # type: ignore[method-assign]
    return run_worker(values)


def wait_for_a_disk_that_never_answers() -> None:
    """Stands for a read that does not return."""
    threading.Event().wait()


def _first(once: Path) -> bool:
    try:
        once.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
