"""Processes killed, stopped and blocked in the middle of a run: it ends with the same bits, and says what happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.blocked import run_blocked_worker
from tests.end_to_end.faults import (
    LONG,
    Running,
    command,
    kill,
    newest_checkpoint,
    notes,
    outcome,
    planned_samples,
    wait_for,
)
from tests.end_to_end.small import Train
from xdist_train.training import worker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> dict[str, Any]:
    """The outcome of the run that nobody disturbs."""
    return outcome(train("undisturbed", *LONG).run_uri)


def test_the_samples_of_a_run_are_those_of_its_plan(
    undisturbed: dict[str, Any], bands: Dataset, whole_storage: Path
) -> None:
    """What run.json says was drawn is what arithmetic says."""
    assert planned_samples(open_store(str(whole_storage / "undisturbed")), bands) == undisturbed["samples"]


def test_a_killed_worker_changes_nothing(ray_cluster: Any, train: Train, undisturbed: dict[str, Any]) -> None:
    """SIGKILL of one rank between two checkpoints: one restart, then the same weights, figures and samples."""
    running = Running(ray_cluster, train, "killed")
    kill(running.wait_until(1, 4)[1])
    result = running.finish()
    assert undisturbed == outcome(result.run_uri)
    assert "workers lost: " in notes(result.run_uri)
    assert open_store(result.run_uri).read_json("run.json")["group_starts"] == 2


@pytest.mark.slow
def test_a_stopped_worker_is_noticed_and_ended(ray_cluster: Any, train: Train, undisturbed: dict[str, Any]) -> None:
    """SIGSTOP of one rank: noticed within the limit and a little, with rank, position and stack; then the same end."""
    running = Running(ray_cluster, train, "stopped-worker", "failure.hang_s=20")
    beats = running.wait_until(1, 4)
    os.kill(beats[0].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: any("no progress for" in note for note in running.view().notes))  # type: ignore[union-attr]
    assert 15 < time.monotonic() - stopped < 60
    result = running.finish()
    assert undisturbed == outcome(result.run_uri)
    said = notes(result.run_uri)
    assert f"rank 0 on {beats[0].host} (pid {beats[0].pid}) gives no sign of life" in said
    assert "at epoch 2, step" in said
    assert "training/loop.py" in said or "no stack" in said


@pytest.mark.slow
def test_a_blocked_loader_is_noticed_and_ended(
    ray_cluster: Any, train: Train, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank whose loader stands still is named, with the function it stands in; the other is not blamed."""
    monkeypatch.setattr(worker, "run_worker", run_blocked_worker)
    result = Running(ray_cluster, train, "blocked", "failure.hang_s=20").finish()
    assert undisturbed == outcome(result.run_uri)
    said = notes(result.run_uri)
    first = next(note for note in said.split("workers lost: ") if "no progress" in note)
    assert "is waiting for data at epoch 2, step 4" in first, said
    assert "wait_for_a_disk_that_never_answers" in first
    assert 1 == first.count("stack of rank")


@pytest.fixture
def drive(ray_cluster: Any, bands: Dataset, whole_storage: Path) -> Iterator[Any]:
    """Starts the same run by a driver of its own; whatever of it still runs at the end is ended."""
    drivers: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        settings = [
            *(f"data.uri={bands.store.uri}", f"storage.uri={whole_storage}", f"loader.cache_dir={whole_storage}/cache"),
            *("loader.image_size=64", "schedule.name=step", "schedule.warmup_epochs=0", "evaluate.bootstrap=100"),
            *(*LONG, f"run.name={name}", "run.resume=auto"),
        ]
        address = ray_cluster.get_runtime_context().gcs_address
        drivers.append(
            subprocess.Popen(
                command(settings, sys.executable),
                env={**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return drivers[-1]

    yield start
    for driver in drivers:
        with suppress(ProcessLookupError):
            driver.kill()
        driver.communicate()


@pytest.mark.slow
def test_a_killed_driver_is_followed_by_another(
    drive: Any, train: Train, undisturbed: dict[str, Any], whole_storage: Path
) -> None:
    """SIGKILL of the driver, then the same run with run.resume=must."""
    driver = drive("driver")
    wait_for(lambda: newest_checkpoint(whole_storage / "driver"))
    driver.kill()
    driver.wait(10)
    result = train("driver", *LONG, "run.resume=must")
    assert undisturbed == outcome(result.run_uri)
    attempts = open_store(result.run_uri).read_json("run.json")["attempts"]
    assert [1, 2] == [attempt["attempt"] for attempt in attempts]


@pytest.mark.slow
def test_sigterm_stops_behind_a_checkpoint(
    drive: Any, train: Train, undisturbed: dict[str, Any], whole_storage: Path
) -> None:
    """Exit code 75 in under 20 s, a checkpoint newer than the signal; a damaged one is passed over, by name."""
    folder = whole_storage / "sigterm"
    driver = drive("sigterm")
    wait_for(lambda: newest_checkpoint(folder))
    sent, started = time.time(), time.monotonic()
    driver.send_signal(signal.SIGTERM)
    text, _ = driver.communicate(timeout=60)
    assert driver.returncode == 75, text
    assert time.monotonic() - started < 20
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert (newest / "digest.json").stat().st_mtime > sent
    shutil.copytree(folder, whole_storage / "damaged")

    assert undisturbed == outcome(train("sigterm", *LONG, "run.resume=must").run_uri)

    damaged = whole_storage / "damaged"
    weights = damaged / "checkpoints" / newest.name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    older = sorted(path.name for path in (damaged / "checkpoints").iterdir() if path.is_dir())[-2]
    assert undisturbed == outcome(train("damaged", *LONG, "run.resume=must").run_uri)
    assert f"checkpoint {newest.name} is passed over" in notes(str(damaged))
    assert f"going back to {older}" in notes(str(damaged))
