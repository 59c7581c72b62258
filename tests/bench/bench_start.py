"""From the command to the first training step, part by part, against Ray's own bare start of two workers.

A small ResNet-18 run with two workers on this machine alone; shards and indexes lie in the cache. The bare start
(`bare_start.py`) connects and runs an empty function on two workers: it ends where that function begins. Both are
commands of their own and start a Ray of their own; they take turns. A moment of several workers is the latest one's;
a part is the time since the moment before it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.bench.noted_start import NOTES
from tests.bench.results import Row, compare, measured, versions
from tests.end_to_end.small import write_bands

__all__ = ["rows"]

COMMAND = "python -m tests.bench start"
ROUNDS = 7
_SETTINGS = (
    "model.backbone=resnet18",
    "loader.image_size=64",
    "train.epochs=1",
    "train.batch_size=48",
    "schedule.warmup_epochs=0",
    "scale.num_workers=2",
    "evaluate.bootstrap=100",
    "evaluate.test=false",
)
_LAST, _BARE_LAST = "first step", "worker begins"

Moments = dict[str, float]


def rows() -> Iterable[Row]:
    """The whole, ours over the bare one; then our parts in their order, and the bare one's."""
    ours, bare = _rounds()
    details = {"unit": "s", "versions": versions("ray", "torch"), "command": COMMAND}
    whole = [moments[_LAST] for moments in ours]
    theirs = [moments[_BARE_LAST] for moments in bare]
    what = "from the command to the end of the first step, 2 workers"
    yield compare(what, whole, "Ray Train's bare start", theirs, goal="ratio <= 1.5", **details)
    yield from _parts("ours", ours, details)
    yield from _parts("bare", bare, details)


def _parts(whose: str, rounds: list[Moments], details: dict[str, str]) -> Iterable[Row]:
    """Seconds from each moment to the next, in the order of the moments' medians."""
    at = {name: statistics.median(moments[name] for moments in rounds) for name in rounds[0]}
    before = ""
    for name in sorted(at, key=at.__getitem__):
        seconds = [moments[name] - (moments[before] if before else 0.0) for moments in rounds]
        yield measured(f"{whose}, until: {name} (at {at[name]:.2f} s)", seconds, **details)
        before = name


def _rounds() -> tuple[list[Moments], list[Moments]]:
    """Moments of our starts and of bare ones, after one of each that fills the caches."""
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_bands(folder / "data")
        notes = folder / NOTES
        settings = [f"data.uri={dataset.store.uri}", f"storage.uri={folder}/runs", f"loader.cache_dir={folder}/cache"]
        for number in range(ROUNDS + 1):
            started = ["tests.bench.noted_start", str(notes), "train", "demo", f"run.name=r{number}"]
            ours.append(_moments([*started, *settings, *_SETTINGS], notes))
            bare.append(_moments(["tests.bench.bare_start", str(notes), str(folder / f"bare{number}")], notes))
    return ours[1:], bare[1:]


def _moments(arguments: list[str], notes: Path) -> Moments:
    """Seconds from a command's start to each moment that it notes."""
    notes.unlink(missing_ok=True)
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    started = time.time()
    subprocess.run([sys.executable, "-m", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    found: Moments = {}
    for line in notes.read_text().splitlines():
        values = json.loads(line)
        found[values["name"]] = max(found.get(values["name"], 0.0), values["time"] - started)
    return found
