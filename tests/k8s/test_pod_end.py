"""The end of a pod, with a real Ray as the first process of a process namespace, as in a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.k8s.manifests import Pod, ray_pods, render

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_START_S, _END_S = 60.0, 60.0
_DRAINED = "Local node finished draining"
# A namespace of processes, mounts and network (Ray's ports are then nobody else's), and what runs in it as process 1.
_CONTAINER = "mount -t proc proc /proc && ip link set lo up && exec /bin/bash -c -- {command}"


@pytest.fixture
def head() -> Pod:
    """The head of the train job."""
    return next(pod for pod in ray_pods(render("cpu")) if pod.name == "xdist-train/head")


@pytest.fixture
def container(head: Pod, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts Ray's head by a shell line, `{ray}` in it, as process 1 of a namespace; ends what is left."""
    probe = ["unshare", "--pid", "--fork", "--mount", "--net", "ip", "link", "set", "lo", "up"]
    if not shutil.which("ip") or not shutil.which("pkill") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no namespaces here: needs root, iproute2 and procps")
    started = []
    # Ray's sockets want a short path.
    ray_folder = Path(f"/tmp/xdist-pod-{os.getpid()}")
    params = "".join(f" --{name}={value}" for name, value in head.group["rayStartParams"].items())
    ray = (
        f"{Path(sys.executable).with_name('ray')} start --head --block{params} --include-dashboard=false"
        f" --node-ip-address=127.0.0.1 --object-store-memory=100000000 --temp-dir={ray_folder}"
    )

    def start(line: str) -> subprocess.Popen[bytes]:
        variables = os.environ | head.environment | {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
        inner = _CONTAINER.format(command="'" + line.format(ray=ray) + "'")
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "bash", "-c", inner],
                stdout=log,
                stderr=log,
                env=variables,
            )
        started.append(process)
        _wait_for(lambda: "block forever" in _log(tmp_path), _START_S)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    shutil.rmtree(ray_folder, ignore_errors=True)


def _log(folder: Path) -> str:
    return (folder / "log").read_text()


def _wait_for(condition: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "did not come about in time"
        time.sleep(0.2)


def _first_process(unshare: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    return int(children[0])


def _run_hook(pid: int, head: Pod) -> None:
    command = head.ray["lifecycle"]["preStop"]["exec"]["command"]
    # It is killed with the container when process 1 has ended: no matter how it ends.
    subprocess.run(["nsenter", "--target", str(pid), "--pid", "--mount", *command], timeout=_END_S, check=False)


def test_kuberays_command_becomes_ray_and_a_sigterm_drains(
    container: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """`bash -c "ulimit ...; ray start --block"` is `ray start` itself as process 1: a SIGTERM drains the node."""
    process = container("ulimit -n 1024; {ray}")
    os.kill(_first_process(process), signal.SIGTERM)
    process.wait(_END_S)
    assert _DRAINED in _log(tmp_path)


def test_the_hook_drains_where_ray_is_process_1(
    container: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, head: Pod
) -> None:
    """preStop drains the node and waits until Ray has ended."""
    process = container("ulimit -n 1024; {ray}")
    _run_hook(_first_process(process), head)
    process.wait(_END_S)
    assert _DRAINED in _log(tmp_path)


def test_the_hook_drains_where_a_shell_is_process_1(
    container: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, head: Pod
) -> None:
    """A shell as process 1 swallows Kubernetes' SIGTERM, and Ray hears nothing; the hook drains the node."""
    process = container("{ray}; true")
    os.kill(_first_process(process), signal.SIGTERM)
    time.sleep(2)
    assert process.poll() is None
    assert "received SIGTERM" not in _log(tmp_path)
    _run_hook(_first_process(process), head)
    process.wait(_END_S)
    assert _DRAINED in _log(tmp_path)
