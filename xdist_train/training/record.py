"""`run.json`: what a run is, how it stands and what of it may be read. Written by the driver, always whole."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.runs import RUN, RUN_SCHEMA, RunFolder

__all__ = ["RunRecord", "code_revision", "versions"]

_HEARTBEAT_S = 10.0
_PACKAGES = ("xdist-train", "torch", "torchvision", "timm", "ray", "nvidia-dali-cuda130", "opencv-python-headless")


@dataclass
class RunRecord:
    """The values of `run.json` and the moment of their last writing."""

    folder: RunFolder
    values: dict[str, Any]
    _written: float = field(default=0.0)

    def write(self, **changes: Any) -> None:
        """Change values and publish the whole."""
        self.values |= {**changes, "heartbeat": time.time()}
        self.folder.publish_json(RUN, self.values)
        self._written = time.monotonic()

    def beat(self, complete: list[str]) -> None:
        """Publish if objects were added or the last heartbeat is old."""
        if complete != self.values["complete"] or time.monotonic() - self._written > _HEARTBEAT_S:
            self.write(complete=complete)

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
    "parent": None,
    "complete": [],
}


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_revision() -> str:
    """Revision of this program: `XDIST_REVISION` where a build set it, git's where it runs from a checkout."""
    if os.environ.get("XDIST_REVISION"):
        return os.environ["XDIST_REVISION"]
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"release {metadata.version('xdist-train')}"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
