"""How an examination goes on where a node does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import doctor
from cluster.doctor import Finding, Places, Visit, examine


def _node(name: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name * 8, "NodeManagerHostname": name, "Alive": True, "Resources": resources}


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Visit:
    """A head without CPUs and two workers, one of which is silent."""
    ray = SimpleNamespace(nodes=lambda: [_node("head"), _node("a", CPU=4, GPU=1), _node("b", CPU=4)])
    silent = "no worker process there answered within 60 s"
    monkeypatch.setattr(
        doctor, "on_nodes", lambda ray, asked, *_: {node: silent if node[0] == "b" else "1" for node in asked}
    )
    return Visit(ray, Places())


def test_the_head_is_asked_and_workers_alone_are_counted(visit: Visit) -> None:
    """A driver on the head reads and writes too; workers run where CPUs are."""
    assert ["head (headhead)", "a (aaaaaaaa)", "b (bbbbbbbb)"] == list(visit.names.values())
    assert ["a" * 8, "b" * 8] == visit.workers
    assert 1 == visit.gpus["a" * 8]


def test_a_silent_node_is_a_red_line_and_the_rest_goes_on(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is said; checks that follow are still made."""

    def asks(visit: Visit) -> Iterator[Finding]:
        visit.ask(lambda: 1)
        yield Finding(what="not reached", ok=True, told="")

    def asks_nobody(visit: Visit) -> Iterator[Finding]:
        yield Finding(what="last", ok=True, told="")

    point = SimpleNamespace(name="made up", load=lambda: {"first": asks, "last": asks_nobody})
    monkeypatch.setattr(doctor, "entry_points", lambda group: [point])
    first, last = examine(visit)
    assert (False, "first", "last") == (first.ok, first.what, last.what)
    assert "node b (bbbbbbbb): no worker process there answered" in first.told
    assert first.todo
