"""The real command in a process of its own, on a Ray cluster of its own that ends with it."""

from __future__ import annotations

import os
import subprocess
import sys

from cluster.store import open_store
from dataloading.dataset import Dataset

__all__ = ["COMMAND", "SMALL", "copy_dataset", "xdist_train"]

_LIMIT_S = 400
COMMAND = (sys.executable, "-c", "from xdist_train.cli import run; run()")
"""What stands for `xdist-train`."""
SMALL = (
    "loader.image_size=64",
    "train.epochs=2",
    "train.batch_size=48",
    "schedule.name=step",
    "schedule.warmup_epochs=0",
    "evaluate.bootstrap=100",
)
"""Settings of a run that takes seconds on the bands."""


def xdist_train(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`xdist-train ...` to its end, with these variables beside the test's own."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )


def copy_dataset(dataset: Dataset, uri: str) -> None:
    """A packed dataset into a store, `dataset.json` last."""
    target = open_store(uri)
    for key in sorted(dataset.store.walk(), key=lambda key: key == "dataset.json"):
        target.upload(dataset.store.path(key), key)
