"""The cluster of several nodes that other tests lose nodes of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.nodes import Nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _alive(nodes: Nodes) -> set[str]:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    infos = GcsClient(nodes.address).get_all_node_info(timeout=10)
    return {node_id.hex() for node_id, info in infos.items() if info.state == GcsNodeInfo.ALIVE}


def test_a_killed_node_leaves_nothing_and_the_others_stay(tmp_path: Path) -> None:
    """A node is gone with all of its processes at once; the rest of the cluster is as it was."""
    nodes = Nodes(tmp_path)
    try:
        head, first, second = nodes.add_all([0, 1, 1], head=True)
        assert {head.node_id, first.node_id, second.node_id} == _alive(nodes)
        assert first.find("raylet/raylet")
        others = set(head.processes()) | set(second.processes())
        nodes.kill(first)
        assert {} == first.processes()
        assert others <= set(head.processes()) | set(second.processes())
    finally:
        started = time.monotonic()
        nodes.stop()
    assert time.monotonic() - started < 10
    assert [{}, {}, {}] == [node.processes() for node in nodes.nodes]
    assert list(tmp_path.glob("node0-ray-logs/gcs_server.out"))
