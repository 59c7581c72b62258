"""Nodes of a real cluster lost, replaced and taken away with notice, with data and results in S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.store import Store, open_store
from dataloading.dataset import Dataset
from tests.end_to_end.commands import copy_dataset
from tests.end_to_end.faults import LONG, command, notes, outcome, planned_samples, wait_for
from tests.end_to_end.small import Train
from tests.nodes import Node, Nodes
from tests.seaweed import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Nodes]:
    """A head without CPUs, to which nodes of one CPU come and go."""
    nodes = Nodes(tmp_path_factory.mktemp("nodes"), environment=s3_server.environment)
    try:
        nodes.add(0, head=True)
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def three_nodes(cluster: Nodes) -> list[Node]:
    """The nodes with a CPU, three of them."""
    living = [node for node in cluster.nodes[1:] if node.find("raylet/raylet")]
    return living + cluster.add_all([1] * (3 - len(living)))


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> dict[str, Any]:
    """The outcome of three workers that nobody disturbs."""
    return outcome(train("three", *LONG, "scale.num_workers=3").run_uri)


class Driver:
    """`xdist-train train demo` as a process of its own; what it says is in a file."""

    def __init__(self, cluster: Nodes, s3: str, folder: Path, *overrides: str) -> None:
        self.run_store: Store = open_store(f"{s3}/runs/run")
        settings = [
            *(f"data.uri={s3}/bands", f"storage.uri={s3}/runs", f"loader.cache_dir={folder}/cache", "run.name=run"),
            *("loader.image_size=64", "schedule.name=step", "schedule.warmup_epochs=0", "evaluate.bootstrap=100"),
            *(*LONG, *overrides),
        ]
        self._said = folder / "said"
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                command(settings, sys.executable),
                env={**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"},
                stdout=said,
                stderr=said,
            )

    def said(self) -> str:
        return self._said.read_text()

    def wait_until_said(self, text: str) -> None:
        wait_for(lambda: text in self.said() or self.process.poll() is not None)
        assert text in self.said(), self.said()

    def finish(self) -> dict[str, Any]:
        """Wait for a good end; what the run left."""
        assert self.process.wait(180) == 0, self.said()
        return outcome(self.run_store.uri)


@pytest.fixture
def drive(cluster: Nodes, s3: str, bands: Dataset, tmp_path: Path) -> Iterator[Any]:
    """Starts a driver; one that still runs at the end is ended."""
    copy_dataset(bands, f"{s3}/bands")
    drivers: list[Driver] = []

    def start(*overrides: str) -> Driver:
        drivers.append(Driver(cluster, s3, tmp_path, *overrides))
        return drivers[-1]

    yield start
    for driver in drivers:
        with suppress(ProcessLookupError):
            driver.process.kill()
        driver.process.wait()


def _hosts(nodes: list[Node]) -> list[Node]:
    """Those with a worker of a run."""
    return [node for node in nodes if node.find("ray::RayTrainWorker")]


def _val_loss(left: dict[str, Any]) -> float:
    return float([row["val_loss"] for row in left["rows"] if row["kind"] == "epoch"][-1])


def test_a_run_goes_on_with_the_nodes_that_are_left(
    cluster: Nodes, three_nodes: list[Node], drive: Any, undisturbed: dict[str, Any], bands: Dataset
) -> None:
    """scale.num_workers=[2,3], one of three nodes loses power: the plan's samples, nearly the same validation loss."""
    driver = drive("scale.num_workers=[2,3]")
    driver.wait_until_said("epoch 1: ")
    assert len(_hosts(three_nodes)) == 3
    cluster.kill(three_nodes[2])
    left = driver.finish()
    assert "workers lost: " in notes(driver.run_store.uri)
    assert planned_samples(driver.run_store, bands) == left["samples"] == undisturbed["samples"]
    assert abs(_val_loss(left) - _val_loss(undisturbed)) < 1e-3


def test_a_run_waits_for_a_node_and_says_so(
    cluster: Nodes, three_nodes: list[Node], drive: Any, undisturbed: dict[str, Any]
) -> None:
    """Three workers on three nodes, one lost: what is waited for and how long; a new node is taken at once."""
    driver = drive("scale.num_workers=3", "scale.wait_s=120")
    driver.wait_until_said("epoch 1: ")
    cluster.kill(three_nodes[1])
    driver.wait_until_said("waiting for 3 worker(s): they need 3 CPUs, the cluster has 2 free")
    cluster.add(1)
    assert undisturbed == driver.finish()


def test_a_run_moves_from_a_node_that_is_told_to_end(three_nodes: list[Node], drive: Any, train: Train) -> None:
    """SIGTERM to a node's `ray start`, as when a pod ends: a checkpoint at once, and on to the third node."""
    two = outcome(train("moved", *LONG).run_uri)
    driver = drive("failure.max_failures=0")
    driver.wait_until_said("epoch 1: ")
    going = _hosts(three_nodes)[0]
    (start,) = [pid for pid, line in going.processes().items() if " start --block" in line and "-I -S" not in line]
    sent = time.time()
    os.kill(start, signal.SIGTERM)
    driver.wait_until_said("is about to be taken away")
    left = driver.finish()
    assert two == left
    record = driver.run_store.read_json("run.json")
    assert (record["group_starts"], len(record["attempts"])) == (2, 1)
    assert "lost" not in json.dumps(record["notes"])
    assert time.time() - sent < 120
