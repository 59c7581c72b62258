"""Data and results in S3: the training job on a cluster of its own, started with the server's address."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError
from safetensors.torch import load

from cluster.errors import XdistError
from cluster.runs import RUN
from cluster.store import Store, open_store
from dataloading.dataset import Dataset
from tests.seaweed import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.ray

_READERS = {
    ".json": json.loads,
    ".safetensors": load,
    ".parquet": lambda data: pq.read_table(io.BytesIO(data)),
    ".jsonl": lambda data: [json.loads(line) for line in data.splitlines()],
}


def train(data: str, storage: str, cache: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`xdist-train train demo` on two workers of a cluster that ends with it."""
    settings = [
        f"data.uri={data}",
        f"storage.uri={storage}",
        "run.name=run",
        f"loader.cache_dir={cache}",
        "loader.image_size=64",
        "train.epochs=2",
        "train.batch_size=48",
        "schedule.name=step",
        "schedule.warmup_epochs=0",
        "evaluate.bootstrap=100",
        "checkpoint.every_steps=1",
        *overrides,
    ]
    command = [sys.executable, "-c", "from xdist_train.cli import run; run()", "train", "demo", *settings]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def copy_dataset(dataset: Dataset, uri: str) -> None:
    """A packed dataset into the store, `dataset.json` last."""
    target = open_store(uri)
    for key in sorted(dataset.store.walk(), key=lambda key: key == "dataset.json"):
        target.upload(dataset.store.path(key), key)


def read_all(run: Store) -> list[str]:
    """Read everything that `run.json` lists, and every checkpoint that Ray's snapshot names; the keys."""
    snapshot = run.read_json("checkpoints/checkpoint_manager_snapshot.json")
    named = [entry["checkpoint_dir_name"] for entry in snapshot["checkpoint_results"]]
    keys = [key for name in named for key in run.walk(f"checkpoints/{name}")]
    keys += run.read_json(RUN)["complete"]
    for key in keys:
        _READERS.get(Path(key).suffix, bytes)(run.read(key))
    return keys


class Poller(threading.Thread):
    """Reads what `run.json` lists again and again while a run goes on; keeps what could not be read."""

    def __init__(self, run: Store) -> None:
        super().__init__()
        self.run_store, self.seen, self.wrong, self._end = run, set(), [], threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.5):
            if not self.run_store.exists(RUN):
                continue
            for key in self.run_store.read_json(RUN)["complete"]:
                try:
                    _READERS.get(Path(key).suffix, bytes)(self.run_store.read(key))
                    self.seen.add(key)
                except (XdistError, ValueError, OSError, SafetensorError) as error:
                    self.wrong.append((key, error))

    def stop(self) -> None:
        self._end.set()
        self.join()


@pytest.fixture
def finished(
    s3: str, s3_server: S3Server, bands: Dataset, tmp_path: Path
) -> tuple[str, Poller, subprocess.CompletedProcess[str]]:
    """One epoch, then the same run to its end, with a reader beside it and a server that is away for 10 s."""
    copy_dataset(bands, f"{s3}/bands")
    first = train(f"{s3}/bands", f"{s3}/runs", tmp_path / "cache", "train.epochs=1")
    assert first.returncode == 0, first.stderr
    poller = Poller(open_store(f"{s3}/runs/run"))
    poller.start()
    outage = [threading.Timer(14, s3_server.freeze), threading.Timer(24, s3_server.thaw)]
    try:
        for timer in outage:
            timer.start()
        second = train(f"{s3}/bands", f"{s3}/runs", tmp_path / "cache", "run.resume=must")
    finally:
        for timer in outage:
            timer.join()
        poller.stop()
    return s3, poller, second


@pytest.mark.slow
def test_a_run_in_s3_resumes_and_reads_whole(
    finished: tuple[str, Poller, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Listed objects read whole at any moment; the newest 3 checkpoints are kept; no secret is anywhere."""
    s3, poller, second = finished
    assert second.returncode == 0, second.stderr
    run = open_store(f"{s3}/runs/run")
    record: dict[str, Any] = run.read_json(RUN)
    assert (record["status"], record["epochs"], [a["attempt"] for a in record["attempts"]]) == ("finished", 2, [1, 2])
    assert poller.wrong == []
    assert poller.seen
    assert {"model/model.safetensors", "evaluation/test.json"} <= set(read_all(run))
    kept = [entry.name for entry in run.entries("checkpoints") if entry.is_folder]
    assert kept == ["e001-s000001-a02", "e001-s000002-a02", "e002-s000000-a02"]
    for key in run.walk():
        assert not [secret for secret in (ACCESS_KEY, SECRET_KEY) if secret.encode() in run.read(key)], key
    shards = sorted(path.name for path in (tmp_path / "cache").glob("*/shards/*"))
    assert len(shards) == len(open_store(f"{s3}/bands").list("shards"))


def test_a_store_that_refuses_ends_before_anything_is_written(
    s3: str, bands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong key: one paragraph that says so, exit code 1."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    done = train(bands.store.uri, f"{s3}/runs", tmp_path / "cache")
    assert done.returncode == 1
    assert "credentials are wrong" in done.stderr
    assert "Traceback" not in done.stderr
