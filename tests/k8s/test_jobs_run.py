"""The three RayJobs as rendered, really run: their commands, environment and Ray parameters, on two hosts of Ray.

KubeRay's part is played by this file: it starts head and worker with what the manifest says, and submits each
entrypoint over HTTP as the operator does. Sizes are changed where a user would, in the settings.
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.store import Store, open_store
from tests.end_to_end.commands import SMALL, copy_dataset
from tests.end_to_end.small import write_bands
from tests.hosts import Network
from tests.k8s.manifests import Pod, by_kind, ray_pods, render, settings
from tests.nodes import Nodes
from tests.seaweed import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

_PLACE = "s3://bucket/jobs"
_SIZES = {
    "XDIST_DATA_URI": f"{_PLACE}/bands",
    "XDIST_STORAGE_URI": f"{_PLACE}/runs",
    "XDIST_RECIPE": "demo",
    "XDIST_SPACE": "smoke",
    "XDIST_WORKERS": "2",
    "XDIST_CPUS_PER_WORKER": "1",
    "XDIST_TRAIN_OPTIONS": " ".join(SMALL),
    "XDIST_TUNE_OPTIONS": f"{' '.join(SMALL)} train.epochs=1 search.trials=1 search.grace_epochs=1",
    "XDIST_CAM_OPTIONS": "cam.gallery=1 cam.faithfulness=0",
}
_LIMIT_S = 240.0


@pytest.fixture(scope="module")
def pods() -> dict[str, Pod]:
    """Pods of the jobs on CPUs, by name."""
    return {pod.name: pod for pod in ray_pods(render("cpu"))}


def _environment(pod: Pod, folder: Path) -> dict[str, str]:
    """What the Ray container sees; folders of the image are below one of the test's, sizes a smoke test's."""
    values = settings(render("cpu")) | pod.environment
    assert set(_SIZES) <= set(values)
    assert "eth0" == values["GLOO_SOCKET_IFNAME"]
    return values | _SIZES | {"HOME": str(folder), "XDIST_CACHE_DIR": str(folder / "cache")}


@pytest.fixture(scope="module")
def cluster(
    pods: dict[str, Pod], network: Network, network_store: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    """Head and worker of the train job; those of the others are the same but for a label."""
    folder = tmp_path_factory.mktemp("pods")
    head, worker = pods["xdist-train/head"], pods["xdist-train/worker"]
    for job in ("xdist-tune", "xdist-cam"):
        assert pods[f"{job}/head"].group["rayStartParams"] == head.group["rayStartParams"]
        assert _environment(pods[f"{job}/worker"], folder) == _environment(worker, folder)
    assert ({"num-cpus": "0"}, {}) == (head.group["rayStartParams"], worker.group["rayStartParams"])
    environment = _environment(head, folder) | network_store.environment
    nodes = Nodes(folder / "nodes", environment=environment, token=secrets.token_hex(16))
    try:
        # KubeRay takes a worker's CPUs from its limits; there are two here.
        nodes.add_all([0, 2], head=True, hosts=[network.add(), network.add()])
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def place(network_store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Where the jobs read and write; this process can look."""
    for name, value in network_store.environment.items():
        monkeypatch.setenv(name, value)
    copy_dataset(write_bands(tmp_path / "bands"), f"{_PLACE}/bands")
    return open_store(f"{_PLACE}/runs")


class _Operator:
    """As KubeRay submits a RayJob in HTTPMode, and asks for its status."""

    def __init__(self, cluster: Nodes) -> None:
        self._cluster = cluster
        self._token = cluster.token_file.read_text()

    def run(self, name: str) -> Mapping[str, Any]:
        """A job to its end."""
        (spec,) = [job["spec"] for job in by_kind(render("cpu"), "RayJob") if job["metadata"]["name"] == name]
        assert "HTTPMode" == spec["submissionMode"]
        order = {
            "entrypoint": spec["entrypoint"],
            "runtime_env": yaml.safe_load(spec["runtimeEnvYAML"]),
            "submission_id": name,
        }
        self._ask("/api/jobs/", order)
        deadline = time.monotonic() + _LIMIT_S
        while (job := self._ask(f"/api/jobs/{name}"))["status"] not in ("SUCCEEDED", "FAILED", "STOPPED"):
            assert time.monotonic() < deadline, self._log(name)
            time.sleep(1)
        assert "SUCCEEDED" == job["status"], self._log(name)
        return job

    def _log(self, name: str) -> str:
        return str(self._ask(f"/api/jobs/{name}/logs")["logs"])

    def _ask(self, page: str, values: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self._cluster.dashboard + page,
            data=json.dumps(values).encode() if values else None,
            headers={"X-Ray-Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


def test_the_jobs_do_what_they_are_for(cluster: Nodes, place: Store) -> None:
    """A trained run, its maps, a search: each where the settings say, by the user's sizes, with the token on."""
    operator = _Operator(cluster)
    job = operator.run("xdist-train")
    assert "SIGTERM" == job["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"]
    run = place.read_json("first/run.json")
    assert ("finished", [2], False) == (
        run["status"],
        [attempt["workers"] for attempt in run["attempts"]],
        run["hardware"]["use_gpu"],
    )
    operator.run("xdist-cam")
    assert place.list("first/cam/test")
    operator.run("xdist-tune")
    search = place.read_json("first-search/search.json")
    assert "finished" == search["status"]
    assert 1 == len(place.list("first-search/trials"))
