"""`run.json`: what a run is, how it stands and what of it may be read. Written by the driver, always whole.

A search's `search.json` is kept in the same way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cluster.package import code_revision, installed_versions
from cluster.runs import MADE_LATER, RUN_SCHEMA, RunFolder
from cluster.store import open_store

__all__ = ["RunRecord", "versions"]

_HEARTBEAT_S = 10.0
_QUICK_RETRY_S = 3.0
_PACKAGES = ("xdist-train", "torch", "torchvision", "timm", "ray", "nvidia-dali-cuda130", "opencv-python-headless")


@dataclass
class RunRecord:
    """The values of `run.json` and the moment of their last writing."""

    folder: RunFolder
    values: dict[str, Any]
    _tried: float = field(default=0.0)
    _failed: bool = field(default=False)

    @cached_property
    def quick(self) -> RunFolder:
        """The same folder for one who cannot wait for a storage that is away."""
        return replace(self.folder, store=open_store(self.folder.store.uri, _QUICK_RETRY_S))

    def write(self, **changes: Any) -> None:
        """Change values and publish the whole."""
        self._publish(self.folder, changes)

    def beat(self, **changes: Any) -> None:
        """Publish if values have changed or the last heartbeat is old; after a failure, not at once again.

        Raises:
            StoreError: not published; the next beat after a while tries again.
        """
        same = all(self.values.get(key) == value for key, value in changes.items())
        pause_s = _HEARTBEAT_S if same or self._failed else 0.0
        if time.monotonic() - self._tried < pause_s:
            return
        self._publish(self.quick, changes)

    def _publish(self, folder: RunFolder, changes: dict[str, Any]) -> None:
        self.values |= {**changes, "heartbeat": time.time()}
        self._tried, self._failed = time.monotonic(), True
        folder.publish_json(folder.record, self.values)
        self._failed = False

    def end(self, status: str, **changes: Any) -> None:
        """The last word of this start."""
        attempts = self.values["attempts"]
        attempts[-1] |= {"ended": time.time(), "status": status}
        self.write(status=status, **changes)


def first_record(folder: RunFolder, earlier: dict[str, Any], **values: Any) -> RunRecord:
    """The record of a start that has just claimed the run; what earlier starts left is kept."""
    workers, hardware = values.pop("workers"), values.pop("hardware")
    start = {"attempt": values["attempt"], "workers": workers, "started": time.time()}
    attempts = [*earlier.get("attempts", []), start]
    kept = {key: earlier.get(key, default) for key, default in _LASTING.items()}
    kept["complete"] = [key for key in kept["complete"] if key not in MADE_LATER]
    return RunRecord(
        folder,
        {
            "schema": RUN_SCHEMA,
            "status": "running",
            **kept,
            **values,
            "code_revision": code_revision(),
            "versions": versions(),
            "hardware": hardware,
            "attempts": attempts,
        },
    )


_LASTING: dict[str, Any] = {
    "selected": None,
    "seconds": {},
    "worker_seconds": 0.0,
    "test_evaluations": 0,
    "groups": [],
    "notes": [],
    "parent": None,
    "complete": [],
}


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, and of Python."""
    return installed_versions(_PACKAGES)
