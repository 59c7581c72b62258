"""The connection to Ray: a running cluster where there is one, else one on this machine, quietly.

Knows addresses, environment and resources; nothing of what will run.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.access import TOKEN_HELP, is_this_machine, require_token, take_token
from cluster.errors import InputError

__all__ = [
    "ClusterResources",
    "call_worker",
    "cluster_resources",
    "connect",
    "draining_nodes",
    "free_resources",
    "hide_node_messages",
    "node_names",
    "on_each_node",
    "on_nodes",
    "on_places",
    "set_start_limit",
    "start_here",
    "worker_slots",
]

# What Ray is told on every driver: short polls so that the end of a run is seen at once; the rest is noise.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_KNOCK_S = 10.0
# Where the storage is may be told to a cluster by the driver; who may use it, never: that is each node's own.
_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True)
class ClusterResources:
    """What a cluster could ever give at once."""

    cpus: float
    gpus: float
    nodes: int
    autoscaling: bool


@contextmanager
def connect() -> Iterator[Any]:
    """The `ray` module, connected; disconnected at the end if it was not before.

    `RAY_ADDRESS` names a cluster, else one that runs on this machine is joined, else one is started
    for the life of the block.

    Raises:
        InputError: `RAY_ADDRESS` names a cluster that does not answer, goes through Ray Client, or lets anyone in.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    _init(ray)
    try:
        yield ray
    finally:
        ray.shutdown()


def _init(ray: Any) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS={address}: a Ray Client connection cannot drive a training. Run the command on the cluster."
        )
    try:
        _probe(address)
        if address != "local" and (address or _runs_here()):
            target = _target(address)
            host = target.rpartition(":")[0]
            require_token(host, is_on=take_token(), is_near=is_this_machine(host))
            _knock(target)
            ray.init(address=address or "auto", runtime_env=_runtime_environment(), **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"cannot connect to Ray at {address or 'this machine'}: {' '.join(str(error).split())[:300]} "
            "Check RAY_ADDRESS, and RAY_AUTH_MODE and the token where the cluster asks for one."
        ) from error


def _target(address: str | None) -> str:
    """HOST:PORT of the head that is about to be joined."""
    if not address or address == "auto":
        from ray._private.services import find_bootstrap_address

        return find_bootstrap_address(None) or "localhost:6379"
    return address


def _knock(target: str) -> None:
    """Ray itself tries for 20 s where the token is not the cluster's, and then says only that it cannot connect."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        GcsClient(target).get_all_node_info(timeout=_KNOCK_S)
    except AuthenticationError as error:
        raise InputError(
            f"the Ray cluster at {target} asks for a token, and this command has none or another one. {TOKEN_HELP}"
        ) from error


def _probe(address: str | None) -> None:
    """Ray itself knocks for minutes at a port where nobody is."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _runtime_environment() -> dict[str, Any] | None:
    """For workers of a cluster that was started elsewhere; a submitted job has its own already."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    values = {name: os.environ[name] for name in _FORWARDED if os.environ.get(name)}
    # user:password@host would be a credential
    values = {name: value for name, value in values.items() if "@" not in value}
    return {"env_vars": values} if values else None


def _runs_here() -> bool:
    """Whether the cluster that `ray start` last made on this machine is still alive."""
    from ray._private.services import find_bootstrap_address, find_gcs_addresses

    return find_bootstrap_address(None) in find_gcs_addresses()


def on_each_node(ray: Any, function: Callable[[], str], timeout_s: float) -> dict[str, str]:
    """What a function answers in a worker process of each node that has CPUs, by the node's name.

    A node that does not answer in time answers so.
    """
    names = node_names(ray)
    answers = on_nodes(ray, dict.fromkeys(names, function), timeout_s)
    return {names[node]: answer for node, answer in answers.items()}


def on_nodes(
    ray: Any, functions: Mapping[str, Callable[[], str]], timeout_s: float, num_gpus: float = 0.0
) -> dict[str, str]:
    """What functions answer in a worker process of their nodes, by the node's id.

    A node that does not answer in time, or is lost, answers so.

    Args:
        num_gpus: the part of a GPU that each takes meanwhile.
    """
    return dict(zip(functions, on_places(ray, list(functions.items()), timeout_s, num_gpus), strict=True))


def on_places(
    ray: Any, places: Sequence[tuple[str, Callable[[], str]]], timeout_s: float, num_gpus: float = 0.0
) -> list[str]:
    """The same where a node may be asked for several processes at once; answers in order."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = []
    for node, function in places:
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0, scheduling_strategy=where)(_call)
        tasks.append(task.remote(function))
    done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=timeout_s) if tasks else ([], [])
    late = f"no worker process there answered within {timeout_s:.0f} s"
    return [_answer(ray, task) if task in done else late for task in tasks]


def node_names(ray: Any, *, with_cpus: bool = True) -> dict[str, str]:
    """The nodes that are alive (and have CPUs, unless told otherwise): how people call them, by id."""
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or not with_cpus)
    }


def call_worker(ray: Any, timeout_s: float) -> bool:
    """Let the autoscaler start a node with a CPU, where there is none; whether there is one now."""
    task = ray.remote(num_cpus=1)(_call).remote(str)
    done, _ = ray.wait([task], timeout=timeout_s)
    if not done:
        ray.cancel(task, force=True)
    return bool(done)


def _call(function: Callable[[], str]) -> str:
    return function()


def _answer(ray: Any, task: Any) -> str:
    try:
        return str(ray.get(task))
    except ray.exceptions.RayError as error:  # the node or its process went, or the function raised
        return f"no answer: {' '.join(str(error).split())[:200]}"


def draining_nodes() -> dict[str, float]:
    """Nodes that are about to be taken away: seconds left by node id; infinite where nobody said when."""
    from ray._private.state import state

    now = time.time()
    return {node: limit / 1000 - now if limit else math.inf for node, limit in state.get_draining_nodes().items()}


def free_resources(ray: Any) -> dict[str, float]:
    """CPUs and GPUs that nobody has reserved now."""
    free = ray.available_resources()
    return {kind: free.get(kind, 0.0) for kind in ("CPU", "GPU")}


def set_start_limit(seconds: float) -> None:
    """How long Ray waits for room for one group of workers before it looks again; read when a job begins."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(seconds)


def cluster_resources(ray: Any) -> ClusterResources:
    """CPUs, GPUs and nodes alive now, or at most, where an autoscaler says how far it may go."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    limits = _autoscaler_limits()
    return ClusterResources(
        cpus=max(total.get("CPU", 0.0), limits.get("CPU", 0.0)),
        gpus=max(total.get("GPU", 0.0), limits.get("GPU", 0.0)),
        nodes=len(nodes),
        autoscaling=bool(limits),
    )


def hide_node_messages() -> None:
    """No words of Ray's nodes on this driver's terminal, e.g. that many processes were started."""
    from ray._private import worker

    worker._worker_logs_enabled = False


def start_here(ray: Any, actor: type, name: str | None = None) -> Any:
    """A small actor on this driver's node, where it is not lost with a worker's; its handle."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(actor).options(name=name, scheduling_strategy=here).remote()


def worker_slots(ray: Any, resources: ClusterResources, cpus: float, gpus: float) -> int:
    """Worker processes of this size that the cluster could hold at once; a worker lies on one node."""
    if resources.autoscaling:
        return _fitting({"CPU": resources.cpus, "GPU": resources.gpus}, cpus, gpus)
    return sum(_fitting(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])


def _fitting(have: Mapping[str, float], cpus: float, gpus: float) -> int:
    needs = {"CPU": cpus, "GPU": gpus}
    return int(min(have.get(kind, 0.0) // need for kind, need in needs.items() if need))


def _autoscaler_limits() -> dict[str, float]:
    """Largest resources that a declared autoscaler may reach; empty without one."""
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})
