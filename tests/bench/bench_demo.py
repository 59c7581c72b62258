"""The demo: from nothing to a test figure on this machine, and how long each part takes.

2,000 phantom images, packed, 12 epochs of the small network on 2 Ray workers, then maps of the test images. The spread
of the accuracy is its 95 % interval over test patients, and n the test images.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.store import open_store
from dataloading.packing.phantom import PhantomConfig, run_phantom
from tests.bench.results import Row, measured, versions
from xdist_train.demo import run_demo

__all__ = ["rows"]

COMMAND = "python -m tests.bench demo"


def rows() -> Iterable[Row]:
    """Seconds of the phantom and of the whole demo, and the demo's test accuracy."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        phantom_s = [
            run_phantom(Path(folder) / str(seed), PhantomConfig(num_images=2000, seed=seed)).seconds
            for seed in (0, 1, 2)
        ]
        started = time.perf_counter()
        result = run_demo(f"{folder}/demo", [], Console(), COMMAND)
        demo_s = time.perf_counter() - started
        explained = open_store(result.run_uri).read_json("cam/test/classic-stages/cam.json")
    details = {"versions": versions("torch", "ray", "opencv-python-headless"), "command": COMMAND}
    yield measured("2,000 phantom images, all cores", phantom_s, unit="s", goal="< 60 s", **details)
    yield measured("demo without install", [demo_s], unit="s", goal="< 600 s with install", **details)
    yield measured("job: start of workers to the last figure", [result.seconds["job"]], unit="s", **details)
    report = result.evaluations["test"]
    accuracy = report["accuracy"]
    spread = (accuracy["low"], accuracy["high"])
    row = measured("demo: test accuracy", [accuracy["value"]], unit="", goal=">= 0.95", **details)
    yield Row(**{**vars(row), "spread": spread, "n": report["n_images"]})
    yield from _pointing_rows(explained, details)


def _pointing_rows(explained: dict[str, Any], details: dict[str, str]) -> Iterator[Row]:
    """The pointing game, and by how much it is better than each baseline; spreads are 95 % intervals."""
    pooled = explained["localisation"]["pooled"]
    game, count = pooled["pointing_game"], pooled["n"]
    seconds = sum(explained["seconds"].values())
    yield measured("demo: maps of test, with the start of workers", [seconds], unit="s", **details)
    figures = {"demo: pointing game, pooled": (game, ">= 0.80")}
    for name in ("centred_blob", "mean_map"):
        what = f"demo: pointing game, better than the {name.replace('_', ' ')} by"
        figures[what] = (game[name]["difference"], "interval above 0")
    for what, (figure, goal) in figures.items():
        row = measured(what, [figure["value"]], unit="", goal=goal, **details)
        yield Row(**{**vars(row), "spread": (figure["low"], figure["high"]), "n": count})
