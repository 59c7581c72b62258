"""What a start may still do when it no longer owns its run, and where workers look for a relative path."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import XdistError
from cluster.runs import RunFolder, StaleDriverError
from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.small import Train
from xdist_train.training.launch import LaunchResult

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_stale_driver_stops_and_publishes_nothing(train: Train, whole_storage: Path) -> None:
    """A second start claims the run in its middle: the first ends with that reason, and the model stays as it was."""
    ended: list[XdistError | LaunchResult] = []

    def run() -> None:
        try:
            ended.append(train("stale", "train.epochs=2000", "run.resume=auto"))
        except XdistError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    folder = whole_storage / "stale"
    _wait_for(lambda: (folder / "metrics.jsonl").exists())
    RunFolder(open_store(str(folder)), driver="second").claim()
    before = {path: path.read_bytes() for path in (folder / "model").iterdir()}
    history = (folder / "metrics.jsonl").read_bytes()
    thread.join(120)
    (error,) = ended
    assert isinstance(error, StaleDriverError) or "taken over" in str(error)
    after = {path: path.read_bytes() for path in (folder / "model").iterdir()}
    assert before == after
    assert history == (folder / "metrics.jsonl").read_bytes()


def _wait_for(happened: Callable[[], bool], limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_relative_paths_hold_on_a_cluster_that_was_started_elsewhere(bands: Dataset, tmp_path: Path) -> None:
    """A head whose folder is another: `data.uri=packed storage.uri=runs` mean the driver's folder."""
    data = Path(bands.store.uri)
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "packed").symlink_to(data)
    command = Path(sys.executable).with_name("xdist-train")
    settings = ["data.uri=packed", "storage.uri=runs", "loader.cache_dir=cache", "run.name=rel", "train.epochs=1"]
    settings += ["loader.image_size=64", "schedule.warmup_epochs=0", "evaluate.bootstrap=100"]
    # The local cluster of this command starts in `elsewhere`; the driver then changes to `home`.
    script = (
        "import os, sys, ray; ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False);"
        f"os.chdir({str(home)!r}); from xdist_train.cli import main; sys.exit(main(['train', 'demo', *{settings!r}]))"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    figures = subprocess.run(
        [command, "evaluate", home / "runs/rel", "--split", "val", "--json"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert figures.returncode == 0, figures.stderr
