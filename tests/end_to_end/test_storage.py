"""Data and results in S3, with the server's address and keys in the environment that the command starts with."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from cluster.runs import METRICS, RUN
from cluster.store import Store, open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import SMALL, xdist_train
from tests.end_to_end.reader import Reader, check_all, named_checkpoints
from tests.seaweed import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

_AWAY_S = 30.0
# Large pictures, so that three epochs last longer than it takes to see the first checkpoint.
_DEMO = (
    "phantom.num_images=160",
    "phantom.size_scale=0.25",
    "loader.image_size=288",
    "train.batch_size=16",
    "train.epochs=3",
    "schedule.name=step",
    "schedule.warmup_epochs=0",
    "evaluate.bootstrap=100",
    "checkpoint.every_steps=3",
)


class Outage(threading.Thread):
    """Kills the server when a reader has seen a checkpoint, and starts it again on the same data after a while."""

    def __init__(self, server: S3Server, reader: Reader) -> None:
        super().__init__(daemon=True)
        self.server, self.reader = server, reader
        self.began = self.ended = 0.0

    def run(self) -> None:
        if not self.reader.saw_checkpoint.wait(120):
            return
        self.server.stop(kill=True)
        self.began = time.time()
        time.sleep(_AWAY_S)
        self.server.start()
        self.ended = time.time()


@dataclass(frozen=True)
class Finished:
    """A demo that ran through an outage, and what was seen of it."""

    uri: str
    done: CompletedProcess[str]
    reader: Reader
    outage: Outage

    @property
    def run(self) -> Store:
        """The run's folder."""
        return open_store(f"{self.uri}/runs/demo")


def demo(s3: str, server: S3Server, cache: Path, scratch: Path) -> Finished:
    """`xdist-train demo --out s3://...`, read from all the while, with the server away in its middle."""
    reader = Reader(open_store(f"{s3}/runs/demo"))
    outage = Outage(server, reader)
    reader.start()
    outage.start()
    # Ray's sockets may not have long paths.
    done = xdist_train(
        "demo", "--out", s3, f"loader.cache_dir={cache}", *_DEMO, TMPDIR=str(scratch), RAY_TMPDIR=tempfile.gettempdir()
    )
    if reader.saw_checkpoint.is_set():
        outage.join()
    reader.stop()
    return Finished(s3, done, reader, outage)


def resume(finished: Finished, cache: Path) -> CompletedProcess[str]:
    """One epoch more of the demo's run, on the demo's data."""
    places = (f"data.uri={finished.uri}/packed", f"storage.uri={finished.uri}/runs", f"loader.cache_dir={cache}")
    settings = [setting for setting in _DEMO if not setting.startswith("phantom.")]
    return xdist_train("train", "demo", *places, *settings, "train.epochs=4", "run.name=demo", "run.resume=must")


def cached_shards(cache: Path) -> dict[str, tuple[int, int]]:
    """Name, inode and time of each shard on this node."""
    paths = cache.glob("*/shards/*")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.slow
def test_a_demo_in_s3_outlives_the_server_and_reads_whole(s3: str, s3_server: S3Server, tmp_path: Path) -> None:
    """The server is killed for 30 s in mid-training: no attempt is lost, and at any moment all that is named is whole.

    Then the run is resumed: a second attempt goes on, three checkpoints stay, shards are not fetched again.
    """
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    finished = demo(s3, s3_server, cache, scratch)
    assert finished.done.returncode == 0, finished.done.stderr
    assert finished.reader.wrong == []
    record: dict[str, Any] = finished.run.read_json(RUN)
    assert (record["status"], record["epochs"], record["group_starts"]) == ("finished", 3, 1)
    _check_outage(finished)
    assert {"model/model.safetensors", "evaluation/test.json", "e003-s000000-a01"} <= check_all(finished.run)
    assert list(scratch.glob("xdist-demo-*")) == []

    fetched = cached_shards(cache)
    second = resume(finished, cache)
    assert second.returncode == 0, second.stderr
    record = finished.run.read_json(RUN)
    assert (record["status"], record["epochs"], [a["attempt"] for a in record["attempts"]]) == ("finished", 4, [1, 2])
    kept = sorted(entry.name for entry in finished.run.entries("checkpoints") if entry.is_folder)
    assert kept == named_checkpoints(finished.run) == ["e003-s000003-a02", "e003-s000006-a02", "e004-s000000-a02"]
    assert set(kept) <= check_all(finished.run)
    assert sorted(fetched) == open_store(f"{s3}/packed").list("shards")
    assert cached_shards(cache) == fetched
    _check_secrets(open_store(s3))


def _check_outage(finished: Finished) -> None:
    """It began before the last epoch ended, and the last checkpoint was written after it."""
    epochs = [json.loads(line)["time"] for line in finished.run.read(METRICS).splitlines() if b'"epoch"' in line]
    assert 0 < finished.outage.began < epochs[-1]
    last = finished.run.info("checkpoints/e003-s000000-a01/digest.json")
    assert last
    assert last.modified_s > finished.outage.began + _AWAY_S


def _check_secrets(place: Store) -> None:
    keys = list(place.walk())
    assert {"packed/dataset.json", "runs/demo/run.json"} <= set(keys)
    for key in keys:
        assert not [secret for secret in (ACCESS_KEY, SECRET_KEY) if secret.encode() in place.read(key)], key


def test_a_store_that_refuses_ends_before_anything_is_written(
    s3: str, bands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong key: one paragraph that says so, exit code 1."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    places = (f"data.uri={bands.store.uri}", f"storage.uri={s3}/runs", f"loader.cache_dir={tmp_path / 'cache'}")
    done = xdist_train("train", "demo", *places, *SMALL, "run.name=run")
    assert done.returncode == 1
    assert "credentials are wrong" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_refuses_a_taken_place_in_s3(s3: str) -> None:
    """An object anywhere below it: exit code 2 before an image is drawn, and nothing is changed."""
    open_store(s3).write("other/x", b"1")
    done = xdist_train("demo", "--out", s3)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not empty: it holds other/x" in done.stderr
    assert list(open_store(s3).walk()) == ["other/x"]
