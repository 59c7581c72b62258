"""A repetition over a real cluster: parts side by side, what is pooled of them, and that no end loses anything."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import SMALL
from tune_spaces.repeat import run_repetition

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

_DRIVER = """
import sys
from rich.console import Console
from tune_spaces.repeat import run_repetition
run_repetition("demo", sys.argv[1:], command="test", console=Console())
"""


def _start_driver(ray: Any, settings: list[str]) -> subprocess.Popen[str]:
    """A repetition in a process of its own, on the session's cluster."""
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *settings],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_until(condition: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


def test_a_killed_repetition_ends_as_a_whole(ray_cluster: Any, bands: Dataset, tmp_path: Path) -> None:
    """SIGKILL after an epoch: parts go on from where they stood, and in the end every image is judged once."""
    places = [f"data.uri={bands.store.uri}", f"storage.uri={tmp_path}", f"loader.cache_dir={tmp_path}/cache"]
    settings = [*places, "run.name=r", "folds=3", "scale.num_workers=1", *SMALL, "train.epochs=6", "concurrency=2"]
    parts = tmp_path / "r" / "parts"
    driver = _start_driver(ray_cluster, settings)
    try:
        _wait_until(lambda: len(list(parts.glob("*/metrics.jsonl"))) > 0, driver)
    finally:
        driver.kill()
        driver.communicate()
    begun = [path.parent.name for path in parts.glob("*/run.json")]
    again = [*settings, "run.resume=must"]
    result = run_repetition("demo", again, command="test", console=Console(quiet=True))
    store = open_store(result.uri)
    record = store.read_json("run.json")
    assert ("finished", 2) == (record["status"], len(record["attempts"]))
    table = pq.read_table(io.BytesIO(store.read("predictions/test.parquet")))
    assert [*range(240)] == table["id"].to_pylist()
    right = np.mean(np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist()))
    assert right == pytest.approx(result.values["schemes"][0]["pooled"]["accuracy"]["value"])
    assert right > 0.9
    runs = {name: store.child("parts").child(name).read_json("run.json") for name in store.list("parts")}
    assert ["fold0-seed0", "fold1-seed0", "fold2-seed0"] == sorted(runs)
    facts = [(run["status"], run["parent"], run["test_evaluations"], run["epochs"]) for run in runs.values()]
    assert [("finished", "r", 1, 6)] * 3 == facts
    assert begun == [name for name in begun if len(runs[name]["attempts"]) == 2]
