"""A real Ray cluster of several nodes on this machine, for drivers that are other processes.

Each node is one process group of `ray start --block` below a small process that stands for the machine: whatever
the node starts, however it detaches, stays its descendant (Linux hands orphans to the nearest "child subreaper").
So a node can be killed as a machine that loses power, and nothing of it, nor anything else, is hit. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # a machine's process sees no packages
    from tests.hosts import Host

__all__ = ["Node", "Nodes"]

_READY_WITHIN_S = 60.0
_ENDED_WITHIN_S = 20.0
_POLL_S = 0.05
_OBJECT_STORE_BYTES = 100_000_000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Any free port for each: nodes share one address.
_ANY_PORTS = (
    "--node-manager-port=0",
    "--object-manager-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
    "--dashboard-agent-grpc-port=0",
    "--runtime-env-agent-port=0",
    "--metrics-export-port=0",
)


@dataclass(frozen=True, eq=False)
class Node:
    """One node; `node_id` is Ray's, in hex."""

    name: str
    node_id: str
    machine: subprocess.Popen[bytes]

    def processes(self) -> dict[int, str]:
        """All that runs on it now: command lines by process id."""
        return {pid: _command_line(pid) for pid in _descendants(self.machine.pid)}

    def find(self, part: str) -> list[int]:
        """Its processes whose command line has this part: `raylet/raylet`, `ray::RayTrainWorker`."""
        return [pid for pid, line in self.processes().items() if part in line]


class Nodes:
    """A cluster below a folder, which receives each node's output and, at the end, Ray's logs.

    `environment` is what the nodes get on top of this process's own; RAY_* and AWS_* of this process stay out. With a
    `token`, whoever has no part in the cluster must show it; it lies in `token_file`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        include_dashboard: bool = False,
        token: str = "",
    ) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        self.client_port = _free_port()
        self.token_file = folder / "token"
        self._token = token
        self._dashboard_port = _free_port() if include_dashboard or token else 0
        self._dashboard_host = "127.0.0.1"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        if token:
            self.token_file.touch(0o600)
            self.token_file.write_text(token)
            quiet |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}  # as KubeRay gives it to its pods
        # jobs and the installation of what comes with them find `python` and `pip`
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
        self._environment = {**inherited, "PATH": path, **quiet, **(environment or {})}
        self._machines: list[subprocess.Popen[bytes]] = []
        self._address: str | None = None
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets must be short

    @property
    def address(self) -> str:
        """What a driver sets as RAY_ADDRESS."""
        assert self._address, "no head yet"
        return self._address

    @property
    def with_token(self) -> dict[str, str]:
        """What whoever may come in sets."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    @property
    def dashboard(self) -> str:
        """Where the dashboard answers."""
        assert self._dashboard_port, "no dashboard was asked for"
        return f"http://{self._dashboard_host}:{self._dashboard_port}"

    def get(self, page: str) -> bytes:
        """What the dashboard answers; an error is an exception."""
        request = urllib.request.Request(self.dashboard + page)
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def metrics(self, node: Node) -> str:
        """Where a node's agent exports metrics."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        nodes = GcsClient(self.address).get_all_node_info(timeout=10)
        (port,) = [info.metrics_export_port for key, info in nodes.items() if key.hex() == node.node_id]
        return f"http://127.0.0.1:{port}/metrics"

    @property
    def ray_folder(self) -> Path:
        """Where Ray keeps the session folders of all nodes, until `stop`."""
        return self._temporary

    def add(self, num_cpus: int, *, head: bool = False, host: Host | None = None) -> Node:
        """Start a node and wait until the cluster has it."""
        return self.add_all([num_cpus], head=head, hosts=[host])[0]

    def add_all(
        self, cpus: Iterable[int], *, head: bool = False, hosts: Iterable[Host | None] | None = None
    ) -> list[Node]:
        """Start nodes at once, on hosts of their own or all on this one.

        With `head`, the first is the head, and the others wait for it.
        """
        added: list[Node] = []
        numbers = list(cpus)
        remaining = list(zip(numbers, hosts or [None] * len(numbers), strict=True))
        if head:
            assert self._address is None, "there is a head"
            num_cpus, host = remaining.pop(0)
            self._dashboard_host = host.address if host else "127.0.0.1"
            name, machine = self._launch(num_cpus, host, head=True)
            self._address = self._wait_for_address(name, machine)
            added.append(Node(name, self._wait_for_node(name, machine), machine))
        launched = [self._launch(num_cpus, host, head=False) for num_cpus, host in remaining]
        added += [Node(name, self._wait_for_node(name, machine), machine) for name, machine in launched]
        self.nodes += added
        return added

    def kill(self, node: Node) -> None:
        """End a node as a machine that loses power: SIGKILL for all of it, workers too, with no last words.

        Other nodes see its connections close at once, which a cut cable would not do; for that, `freeze`.
        """
        self._end([node.machine])

    def freeze(self, node: Node) -> None:
        """Stop all of a node with its connections left open: a machine that nobody hears any more."""
        node.machine.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End everything that was started, and nothing else; Ray's logs are then in the folder."""
        self._end(self._machines)
        for path in self._temporary.glob("*/session_2*/logs"):
            shutil.move(path, self.folder / f"node{path.parts[-3]}-ray-logs")
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _launch(self, num_cpus: int, host: Host | None, *, head: bool) -> tuple[str, subprocess.Popen[bytes]]:
        name = f"node{len(self._machines)}-{uuid.uuid4().hex[:6]}"
        dashboard = f"--include-dashboard={str(bool(self._dashboard_port)).lower()}"
        # One folder each: nodes that start at once in a shared one take each other's sockets
        temporary = self._temporary / str(len(self._machines))
        if head:  # the port of Ray Client is the one that cannot be left to Ray
            role = [
                "--head",
                "--port=0",
                dashboard,
                # on a host of its own, as KubeRay has it
                f"--dashboard-host={'0.0.0.0' if host else '127.0.0.1'}",
                f"--dashboard-port={self._dashboard_port}",
                f"--ray-client-server-port={self.client_port}",
            ]
        else:
            role = [f"--address={self.address}"]
        address = host.address if host else "127.0.0.1"
        command = [
            *(host.inside if host else ()),
            *(str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={address}", f"--node-name={name}", f"--num-cpus={num_cpus}", "--num-gpus=0"),
            *(f"--object-store-memory={_OBJECT_STORE_BYTES}", "--include-log-monitor=false", *_ANY_PORTS, *role),
            f"--temp-dir={temporary}",
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            machine = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *command],
                env=self._environment | (host.environment if host else {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._machines.append(machine)
        return name, machine

    def _wait_for_address(self, name: str, machine: subprocess.Popen[bytes]) -> str:
        """Ray writes the address of a cluster that it started below the temporary folder."""
        file = self._temporary / "0" / "ray_current_cluster"
        deadline = time.monotonic() + _READY_WITHIN_S
        while not (file.exists() and file.read_text().strip()):
            self._check(name, machine, deadline)
        return file.read_text().strip()

    def _wait_for_node(self, name: str, machine: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + _READY_WITHIN_S
        while True:
            names = self._names_over_http() if self._token else self._names()
            if name in names:
                return names[name]
            self._check(name, machine, deadline)

    def _names(self) -> dict[str, str]:
        """Ids by the names of nodes."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        infos = GcsClient(self.address).get_all_node_info(timeout=10)
        return {info.node_name: node_id.hex() for node_id, info in infos.items()}

    def _names_over_http(self) -> dict[str, str]:
        """The same where the token opens the door, which this process's own Ray does not show."""
        try:
            nodes: list[dict[str, Any]] = json.loads(self.get("/nodes?view=summary"))["data"]["summary"]
        except OSError:
            return {}
        return {node["raylet"].get("nodeName", ""): node["raylet"].get("nodeId", "") for node in nodes}

    def _check(self, name: str, machine: subprocess.Popen[bytes], deadline: float) -> None:
        log = self.folder / f"{name}.log"
        assert machine.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        time.sleep(_POLL_S)

    def _end(self, machines: list[subprocess.Popen[bytes]]) -> None:
        """A machine's process ends when all of its descendants have, so this also proves that nothing is left."""
        for machine in machines:
            if machine.poll() is None:
                machine.terminate()
        for machine in machines:
            machine.wait(_ENDED_WITHIN_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_machine(command: list[str]) -> NoReturn:
    """Be a machine that runs one command: adopt orphans, and until SIGTERM wait for all of them to end."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    signal.signal(signal.SIGTERM, lambda *_: _signal_all(signal.SIGKILL))
    signal.signal(signal.SIGUSR1, lambda *_: _signal_all(signal.SIGSTOP))
    assert libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) == 0  # the tests were killed
    subprocess.Popen(command)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    raise SystemExit(0)


def _signal_all(number: signal.Signals) -> None:
    """Signal all descendants, which are stopped first: a process that is stopped starts no others."""
    stopped: set[int] = set()
    while new := set(_descendants(os.getpid())) - stopped:
        _signal_each(new, signal.SIGSTOP)
        stopped |= new
    _signal_each(stopped, number)


def _signal_each(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _descendants(root: int) -> list[int]:
    """Process ids of children, their children and so on."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # pid (name, which may hold anything) state parent ...
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found = list(children.get(root, []))
    for pid in found:
        found += children.get(pid, [])
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    _run_machine(sys.argv[1:])
