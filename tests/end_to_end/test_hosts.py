"""Several hosts with addresses of their own and a token: a job submitted from outside, and a cable pulled."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import COMMAND, copy_dataset, xdist_train
from tests.end_to_end.faults import LONG, notes, outcome, planned_samples, wait_for
from tests.hosts import Host, Network
from tests.nodes import Nodes
from tests.seaweed import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

_NUM_HOSTS = 4
_SETTINGS = (
    "loader.image_size=64",
    "schedule.name=step",
    "schedule.warmup_epochs=0",
    "evaluate.bootstrap=100",
)


@pytest.fixture(scope="module")
def hosts(network: Network) -> list[Host]:
    """Four for Ray, and a fifth that has no part in it."""
    return [network.add() for _ in range(_NUM_HOSTS + 1)]


@pytest.fixture(scope="module")
def cluster(hosts: list[Host], network_store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head without CPUs and three nodes of one, each on a host, with one token."""
    # A host that falls silent is given up after 24 s, not after the minute that Ray waits by itself.
    impatient = {"RAY_health_check_period_ms": "2000", "RAY_health_check_failure_threshold": "2"}
    environment = network_store.environment | impatient
    nodes = Nodes(tmp_path_factory.mktemp("hosts"), environment=environment, token=secrets.token_hex(16))
    try:
        nodes.add_all([0, 1, 1, 1], head=True, hosts=hosts[:_NUM_HOSTS])
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def place(network_store: S3Server, bands: Dataset, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where data and runs lie; this process can look."""
    for name, value in network_store.environment.items():
        monkeypatch.setenv(name, value)
    uri = "s3://bucket/hosts"
    if not open_store(f"{uri}/bands").exists("dataset.json"):
        copy_dataset(bands, f"{uri}/bands")
    return uri


class _Submission:
    """`xdist-train submit` on a host of its own; what it says is in a file."""

    def __init__(self, cluster: Nodes, host: Host, place: str, folder: Path, name: str, *overrides: str) -> None:
        self.run = open_store(f"{place}/runs/{name}")
        self._said = folder / name
        settings = [f"data.uri={place}/bands", f"storage.uri={place}/runs", f"loader.cache_dir={folder}/cache"]
        command = ["train", "demo", *settings, f"run.name={name}", *_SETTINGS, *LONG, *overrides]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [*host.inside, *COMMAND, "submit", "--address", cluster.dashboard, "--", *command],
                env={**inherited, **cluster.with_token},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def said(self) -> str:
        return self._said.read_text()

    def wait_until_said(self, pattern: str, limit_s: float = 180) -> None:
        found = re.compile(pattern)
        wait_for(lambda: found.search(self.said()) or self.process.poll() is not None, limit_s)
        assert found.search(self.said()), self.said()

    def finish(self) -> dict[str, Any]:
        assert self.process.wait(300) == 0, self.said()
        return outcome(self.run.uri)


@pytest.fixture
def submit(cluster: Nodes, hosts: list[Host], place: str, tmp_path: Path) -> Iterator[Any]:
    """Starts submissions on the fifth host; one that still runs at the end is ended."""
    started: list[_Submission] = []

    def start(name: str, *overrides: str) -> _Submission:
        started.append(_Submission(cluster, hosts[-1], place, tmp_path, name, *overrides))
        return started[-1]

    yield start
    for submission in started:
        with suppress(ProcessLookupError):
            submission.process.kill()
        submission.process.wait()


def _val_loss(left: dict[str, Any]) -> float:
    return float([row["val_loss"] for row in left["rows"] if row["kind"] == "epoch"][-1])


def test_a_job_goes_on_without_a_host_whose_cable_is_pulled(hosts: list[Host], submit: Any, bands: Dataset) -> None:
    """Three hosts, then two: the plan's samples, nearly the same loss; the host that is back is no harm to anybody."""
    whole = submit("whole", "train.epochs=2", "scale.num_workers=3")
    undisturbed = whole.finish()
    assert "plain HTTP: whoever sits between" in whole.said()
    record = whole.run.read_json("run.json")
    assert [3] == [group["workers"] for group in record["groups"]]
    assert planned_samples(whole.run, bands) == undisturbed["samples"]

    cut = submit("cut", "train.epochs=2", "scale.num_workers=[2,3]")
    # Mid-epoch: the checkpoint after step 3 of the first epoch is there, its end is not.
    wait_for(lambda: cut.run.exists("checkpoints/e000-s000003-a01") or cut.process.poll() is not None, 180)
    lost = hosts[_NUM_HOSTS - 1]
    lost.cut()
    try:
        cut.wait_until_said("warning: workers lost: ")
    finally:
        lost.mend()
    left = cut.finish()
    assert "workers lost: " in notes(cut.run.uri)
    groups = [group["workers"] for group in cut.run.read_json("run.json")["groups"]]
    assert (3, {2, 3}) == (groups[0], set(groups)), groups
    assert planned_samples(cut.run, bands) == left["samples"] == undisturbed["samples"]
    assert abs(_val_loss(left) - _val_loss(undisturbed)) < 1e-3


def test_the_doctor_of_another_host_finds_the_network(cluster: Nodes, hosts: list[Host], place: str) -> None:
    """All nodes by gloo, the store from the head too; red is alone that the token goes over plain HTTP.

    There are three, or two where another test has lost one.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    done = subprocess.run(
        [*hosts[-1].inside, *COMMAND, "doctor", "--json", "--address", cluster.dashboard, "--storage", f"{place}/runs"],
        env={**inherited, **cluster.with_token},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = {line["what"]: line for line in json.loads(done.stdout)}
    assert [f"the way to {cluster.dashboard}"] == [what for what, line in lines.items() if not line["ok"]]
    number = int(lines["nodes for workers"]["told"].split()[0])
    assert number in (2, 3)
    assert "MB/s" in lines[f"gloo between {number} nodes"]["told"]
    assert number + 1 == sum(what.startswith("storage from ") for what in lines)
    assert 1 == done.returncode


def test_an_open_cluster_on_another_host_is_refused(hosts: list[Host], tmp_path: Path) -> None:
    """Without authentication a cluster is for its own machine: neither jobs nor drivers go to it over a network.

    On that machine itself, jobs go by the loopback address alone.
    """
    nodes = Nodes(tmp_path, include_dashboard=True)
    try:
        nodes.add(1, head=True, host=hosts[-1])
        job = xdist_train("submit", "--address", nodes.dashboard, "--", "train", "demo")
        driver = xdist_train("doctor", RAY_ADDRESS=nodes.address)
        by_network, by_loopback = (
            subprocess.run(
                [*hosts[-1].inside, *COMMAND, "status", "--address", address],
                env={**os.environ, "RAY_AUTH_MODE": "disabled"},
                capture_output=True,
                text=True,
                check=False,
            )
            for address in (nodes.dashboard, f"http://127.0.0.1:{nodes.dashboard.rpartition(':')[2]}")
        )
    finally:
        nodes.stop()
    for done in (job, driver, by_network):
        assert (2, True) == (done.returncode, "runs without authentication" in done.stderr), done.stderr
    assert (0, True) == (by_loopback.returncode, "no jobs" in by_loopback.stdout), by_loopback.stderr
