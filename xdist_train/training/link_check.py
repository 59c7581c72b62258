"""The doctor's look at the network between nodes: a group of processes, as DDP makes it, and how fast it adds up."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cluster.doctor import Check, Finding, Visit
from cluster.session import on_places

__all__ = ["CHECKS", "Meeting", "judge_link"]

_MEET_S, _ANSWER_S = 20.0, 60.0
_NUM_BYTES = 32 << 20
_ROUNDS = 5
_SMALL_ROUNDS = 20
_SLOW_BYTES_PER_S = 50e6
"""Below this the gradients of a ResNet-50 take 4 s a step between two nodes."""


@dataclass(frozen=True)
class Meeting:
    """One process of the group; called on its node, it says `SECONDS SECONDS` or why there is no group."""

    rank: int
    size: int
    address: str
    backend: str

    def __call__(self) -> str:
        import torch
        import torch.distributed as dist

        device = torch.device("cuda", 0) if self.backend == "nccl" else torch.device("cpu")
        try:
            dist.init_process_group(
                self.backend,
                init_method=f"tcp://{self.address}",
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=_MEET_S),
            )
            small = self._seconds(torch.ones(1, device=device), _SMALL_ROUNDS)
            large = self._seconds(torch.ones(_NUM_BYTES // 4, device=device), _ROUNDS)
        except (RuntimeError, ValueError) as error:
            return f"{socket.gethostname()}: {' '.join(str(error).split())[:300]}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        return f"{small} {large}"

    def _seconds(self, tensor: Any, rounds: int) -> float:
        """Of one sum over all processes, the best of some."""
        import torch
        import torch.distributed as dist

        best = float("inf")
        for _ in range(rounds):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            if tensor.is_cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return best


def check_link(visit: Visit) -> Iterator[Finding]:
    """One process a node (two where there is one node), by NCCL where all nodes have GPUs, else by gloo."""
    nodes = visit.workers
    if not nodes:
        return
    has_gpus = all(visit.gpus.get(node, 0) for node in nodes)
    members = nodes if len(nodes) > 1 else nodes * 2
    if has_gpus and len(nodes) > 1:
        yield _meet(visit, members, "nccl")
    yield _meet(visit, members, "gloo")


def _meet(visit: Visit, nodes: Sequence[str], backend: str) -> Finding:
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in visit.ray.nodes()}
    address = f"{addresses[nodes[0]]}:{random.randint(20_000, 32_000)}"
    meetings = [Meeting(rank, len(nodes), address, backend) for rank in range(len(nodes))]
    places = list(zip(nodes, meetings, strict=True))
    answers = on_places(visit.ray, places, _ANSWER_S, 0.01 if backend == "nccl" else 0.0)
    where = f"{len(set(nodes))} nodes" if len(set(nodes)) > 1 else "two processes of one node"
    return judge_link(answers, backend, where)


def judge_link(answers: Sequence[str], backend: str, where: str) -> Finding:
    """What the processes of a group said; the slowest counts. Bandwidth is that of the ring, in and out of one node."""
    times = [_times(answer) for answer in answers]
    wrong = [answer for answer, pair in zip(answers, times, strict=True) if pair is None]
    small_s, large_s = (max(pair[index] for pair in times if pair) if any(times) else 0.0 for index in (0, 1))
    rate = 2 * (len(answers) - 1) / len(answers) * _NUM_BYTES / large_s if large_s else 0.0
    return Finding(
        what=f"{backend} between {where}",
        ok=not wrong and rate >= _SLOW_BYTES_PER_S,
        told=wrong[0] if wrong else f"{small_s * 1e3:.1f} ms a round trip, {rate / 1e6:,.0f} MB/s",
        todo=_TODO[backend] if wrong else "Place the nodes nearer to each other, or give them a faster network.",
    )


_TODO = {
    "gloo": "Let the nodes reach each other on all ports, and set GLOO_SOCKET_IFNAME to the interface that joins them "
    "in the environment of each `ray start`: without it gloo takes the address of the host's name.",
    "nccl": "Let the nodes reach each other on all ports, and set NCCL_SOCKET_IFNAME to the interface that joins them "
    "in the environment of each `ray start`; NCCL_DEBUG=INFO tells more.",
}


def _times(answer: str) -> tuple[float, float] | None:
    try:
        small, large = map(float, answer.split())
    except ValueError:
        return None
    return small, large


CHECKS: dict[str, Check] = {"network between nodes": check_link}
