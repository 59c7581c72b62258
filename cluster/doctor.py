"""Preflight of a machine or a cluster: what is wrong, and what to do about it.

Runs the checks that packages register (entry points of the group `xdist_train.checks`), in the order of the
packages. A check asks nodes for plain facts and judges them where the command runs, so that judging is pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from cluster.session import node_names, on_nodes

__all__ = ["CHECKS", "Check", "Finding", "Places", "Visit", "examine"]

CHECKS = "xdist_train.checks"
_ANSWER_S = 60.0
_GPU_SHARE = 0.01
"""Enough to see a GPU; a run that has the rest is not disturbed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: green with what was seen, or red with what to do."""

    what: str
    ok: bool
    told: str
    todo: str = ""


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the user wants to work with; what is empty is not looked at."""

    data_uri: str = ""
    storage_uri: str = ""
    cache_dir: str = ""
    cache_limit_gib: float = 0.0


class Visit:
    """A connected cluster, and the way to ask its nodes."""

    def __init__(self, ray: Any, places: Places) -> None:
        self.ray, self.places = ray, places
        self.names = node_names(ray, with_cpus=False)
        """All nodes, the head without CPUs too, from which a driver reads and writes: how people call them, by id."""
        self.workers = [*node_names(ray)]
        """Ids of the nodes with CPUs, on which workers run."""
        self.gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}
        """GPUs that Ray knows of, by node id."""

    def ask(self, function: Callable[[], Any], *, workers_only: bool = False, with_gpu: bool = False) -> dict[str, Any]:
        """What a function answers in a process on each node, by the node's name: JSON values.

        Args:
            workers_only: ask only nodes with CPUs.
            with_gpu: where a node has GPUs, the process sees one.

        Raises:
            UnansweredError: a node did not answer.
        """
        there = partial(_told, function)
        answers: dict[str, str] = {}
        for has_gpu in (False, True):
            asked = self.workers if workers_only else self.names
            nodes = [node for node in asked if (with_gpu and self.gpus.get(node, 0) > 0) == has_gpu]
            share = _GPU_SHARE if has_gpu else 0.0
            answers |= on_nodes(self.ray, dict.fromkeys(nodes, there), _ANSWER_S, share)
        return {self.names[node]: _parsed(self.names[node], text) for node, text in answers.items()}


class UnansweredError(Exception):
    """A node does not answer; the text says which, and what is known."""


Check = Callable[[Visit], Iterable[Finding]]


def examine(visit: Visit, begin: Callable[[str], object] = lambda what: None) -> Iterator[Finding]:
    """All findings, as they come.

    Args:
        begin: called with the name of each check as it begins.
    """
    for point in sorted(entry_points(group=CHECKS), key=lambda point: point.name):
        for name, check in point.load().items():
            begin(name)
            try:
                yield from check(visit)
            except UnansweredError as error:
                yield Finding(what=name, ok=False, told=str(error), todo=_UNANSWERED)


_UNANSWERED = (
    "Look at the node's logs in the dashboard. A module that is missing there means another version of this program: "
    "use one image for all nodes."
)


def _told(function: Callable[[], Any]) -> str:
    return json.dumps(function())


def _parsed(node: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UnansweredError(f"node {node}: {text}") from None
