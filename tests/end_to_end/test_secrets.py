"""Credentials stay where they were put: in the environment of nodes and driver, and nowhere that others read."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runs import RUN
from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import SMALL, copy_dataset, xdist_train
from tests.nodes import Nodes
from tests.seaweed import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_SECRETS = (ACCESS_KEY.encode(), SECRET_KEY.encode())
_PAGES = (
    "/api/jobs/",
    *(
        f"/api/v0/{kind}?detail=true&limit=10000"
        for kind in ("actors", "jobs", "nodes", "placement_groups", "workers", "tasks", "objects", "runtime_envs")
    ),
    "/api/train/v2/runs/v1",
    "/nodes?view=summary",
    "/logical/actors",
    "/events",
)


def answers(head: Nodes) -> Iterator[tuple[str, bytes]]:
    """What the dashboard says to whoever asks, pages of each node included."""
    for page in _PAGES:
        yield page, get(head, page)
    for node in json.loads(get(head, "/nodes?view=summary"))["data"]["summary"]:
        number = node["raylet"]["nodeId"]
        for page in (f"/nodes/{number}", f"/api/v0/logs?node_id={number}"):
            yield page, get(head, page)


def get(head: Nodes, page: str) -> bytes:
    """One answer; a page that is not there is an error."""
    with urllib.request.urlopen(head.dashboard + page, timeout=30) as answer:
        return answer.read()


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file that Ray left in its folder, sockets aside."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()


def leaks(found: dict[str, bytes]) -> list[str]:
    """Names of what holds a secret."""
    return [name for name, data in found.items() if any(secret in data for secret in _SECRETS)]


@pytest.fixture
def head(s3_server: S3Server, tmp_path: Path) -> Iterator[Nodes]:
    """A head with its dashboard, started with the keys in its environment."""
    nodes = Nodes(tmp_path / "nodes", environment=s3_server.environment, include_dashboard=True)
    try:
        nodes.add(2, head=True)
        yield nodes
    finally:
        nodes.stop()


def test_no_secret_leaves_the_environment(s3: str, head: Nodes, bands: Dataset, tmp_path: Path) -> None:
    """Neither job API nor state API, no file in Ray's folder, no object of run or data holds a key.

    The endpoint, which the driver does tell the cluster, is in all of them, so that the search is not blind.
    """
    copy_dataset(bands, f"{s3}/packed")
    places = (f"data.uri={s3}/packed", f"storage.uri={s3}/runs", f"loader.cache_dir={tmp_path / 'cache'}")
    # With Train's own page, which shows each run's settings, switched on.
    more = {"RAY_ADDRESS": head.address, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
    done = xdist_train("train", "demo", *places, *SMALL, "run.name=run", "checkpoint.every_steps=1", **more)
    assert done.returncode == 0, done.stderr
    api, left = dict(answers(head)), dict(files(head.ray_folder))
    stored = {key: open_store(s3).read(key) for key in open_store(s3).walk()}
    assert open_store(s3).read_json(f"runs/run/{RUN}")["status"] == "finished"
    assert (leaks(api), leaks(left), leaks(stored)) == ([], [], [])
    assert leaks({"output": (done.stdout + done.stderr).encode()}) == []
    endpoint = os.environ["AWS_ENDPOINT_URL"].encode()
    assert [page for page in ("/api/jobs/", "/api/v0/jobs?detail=true&limit=10000") if endpoint not in api[page]] == []
    assert f"{s3}/runs".removeprefix("s3://").encode() in api["/api/train/v2/runs/v1"]
    assert [name for name, data in left.items() if endpoint in data]
    assert f"{s3}/runs".encode() in stored["runs/run/config.yaml"]
