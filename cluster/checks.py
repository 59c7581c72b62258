"""What the doctor asks of any cluster: versions, token, shared memory, clocks, storage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from functools import partial

from cluster.access import take_token
from cluster.disk import readable_bytes
from cluster.doctor import Check, Finding, Visit
from cluster.errors import XdistError
from cluster.package import code_digest, installed_versions
from cluster.store import open_store

__all__ = ["CHECKS", "check_workers", "judge_clocks", "judge_shared_memory", "judge_token", "judge_versions"]

_PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "s3fs", "opencv-python-headless", "nvidia-dali-cuda130")
_SHARED_BYTES = 1 << 30
_MOST_SKEW_S = 5.0
_STORE_RETRY_S = 10.0


def check_workers(visit: Visit) -> Iterator[Finding]:
    """There are nodes on which workers can run; `examine_here` has asked for one where there was none."""
    number, gpus = len(visit.workers), sum(visit.gpus.get(node, 0) for node in visit.workers)
    yield Finding(
        what="nodes for workers",
        ok=number > 0,
        told=f"{number} with {gpus} GPUs" if number else "none: what only they have was not looked at",
        todo="Add a node (`ray start --address=...`); on Kubernetes look at the worker pods: `kubectl describe pod`.",
    )


def check_versions(visit: Visit) -> Iterator[Finding]:
    """Python, packages and this program are the same on the driver and on all nodes."""
    return judge_versions(_versions(), visit.ask(_versions))


def judge_versions(here: Mapping[str, str], there: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Compares names and versions of the driver with those of the nodes, by their names."""
    for node, versions in there.items():
        names = sorted({*here, *versions})
        other = [name for name in names if here.get(name) != versions.get(name)]
        said = "; ".join(f"{name} {versions.get(name, 'missing')}, here {here.get(name, 'missing')}" for name in other)
        told = said or f"Python {here['python']}, Ray {here.get('ray')}, torch {here.get('torch')}, as here"
        yield Finding(
            what=f"versions on {node}",
            ok=not other,
            told=told,
            todo="Use one image (or one environment made by constraints.txt) for the head and all nodes.",
        )


def _versions() -> dict[str, str]:
    return {**installed_versions(_PACKAGES), "this program": code_digest()[:12]}


def check_token(visit: Visit) -> Iterator[Finding]:
    """Nobody comes in without the token."""
    return judge_token(take_token())


def judge_token(is_on: bool) -> Iterator[Finding]:
    """One line of whether token authentication is on."""
    yield Finding(
        what="token authentication",
        ok=is_on,
        told="on" if is_on else "off: whoever reaches this machine's ports can run code on the cluster",
        todo="Once `ray get-auth-token --generate`, then RAY_AUTH_MODE=token for every `ray start` and every command; "
        "on Kubernetes `authOptions: {mode: token}`.",
    )


def check_shared_memory(visit: Visit) -> Iterator[Finding]:
    """Ray's object store and the loaders' batches lie in /dev/shm."""
    return judge_shared_memory(visit.ask(_shared_memory))


def judge_shared_memory(free: Mapping[str, int]) -> Iterator[Finding]:
    """Free bytes of /dev/shm by node."""
    for node, num_bytes in free.items():
        yield Finding(
            what=f"/dev/shm on {node}",
            ok=num_bytes >= _SHARED_BYTES,
            told=f"{readable_bytes(num_bytes)} free",
            todo=f"Give it {readable_bytes(_SHARED_BYTES)} or more: `docker run --shm-size`, or in a pod an emptyDir "
            "of medium Memory mounted at /dev/shm. Without it Ray keeps objects on the disk, at a tenth of the speed.",
        )


def _shared_memory() -> int:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize


def check_clocks(visit: Visit) -> Iterator[Finding]:
    """Clocks of nodes agree: S3 refuses requests of clocks that are off, and logs of nodes are read together."""
    before = time.time()
    clocks = visit.ask(time.time)
    return judge_clocks(clocks, before, time.time())


def judge_clocks(clocks: Mapping[str, float], before: float, after: float) -> Iterator[Finding]:
    """Clocks of nodes that were read between two moments of this one; how far each is off, at least."""
    for node, clock in clocks.items():
        skew_s = max(before - clock, clock - after, 0.0)
        yield Finding(
            what=f"clock of {node}",
            ok=skew_s <= _MOST_SKEW_S,
            told="agrees with this one" if skew_s == 0 else f"{skew_s:.1f} s or more off",
            todo="Let a time service (chrony, systemd-timesyncd) run on the node.",
        )


def check_store(visit: Visit) -> Iterator[Finding]:
    """Every node may list, put, get, put conditionally and delete where results go."""
    uri = visit.places.storage_uri
    if not uri:
        return
    for node, reason in visit.ask(partial(_store_refusal, uri)).items():
        yield Finding(
            what=f"storage from {node}",
            ok=not reason,
            told=reason or f"{uri}: list, put, get, conditional put and delete",
            todo="Give the node endpoint and keys in the environment of its `ray start` (or a role), and the role "
            "s3:ListBucket, GetObject, PutObject and DeleteObject below that prefix.",
        )


def _store_refusal(uri: str) -> str:
    try:
        open_store(uri, _STORE_RETRY_S).try_out()
    except XdistError as error:
        return str(error)
    return ""


CHECKS: dict[str, Check] = {
    "nodes": check_workers,
    "versions": check_versions,
    "token authentication": check_token,
    "/dev/shm": check_shared_memory,
    "clocks": check_clocks,
    "storage": check_store,
}
"""By what is shown while they run."""
