"""The doctor's group of processes."""

from __future__ import annotations

import os
import subprocess
import sys

from xdist_train.training.link_check import judge_link

_RUN = (
    "import sys; from xdist_train.training.link_check import Meeting; "
    "print(Meeting(int(sys.argv[1]), 2, sys.argv[2], 'gloo')())"
)


def _meet(address: str, **environment: str) -> list[str]:
    members = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(rank), address],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    return [member.communicate(timeout=120)[0].strip() for member in members]


def test_two_processes_meet() -> None:
    """Seconds of a small and a large sum, which make a green line with round trip and bandwidth."""
    answers = _meet("127.0.0.1:29417")
    finding = judge_link(answers, "gloo", "two processes")
    assert all(len(answer.split()) == 2 for answer in answers), answers
    assert "ms a round trip" in finding.told


def test_no_group_is_red() -> None:
    """An interface that is not there: what gloo says, and which variable to set."""
    finding = judge_link(_meet("127.0.0.1:29418", GLOO_SOCKET_IFNAME="nowhere0"), "gloo", "two processes")
    assert not finding.ok
    assert "nowhere0" in finding.told
    assert "GLOO_SOCKET_IFNAME" in finding.todo


def test_a_slow_network_is_red() -> None:
    """32 MiB in and out of a node in 2 s are 17 MB/s; in 0.02 s, 1,678."""
    slow = judge_link(["0.001 1.9", "0.002 2.0"], "gloo", "2 nodes")
    assert (False, "2.0 ms a round trip, 17 MB/s") == (slow.ok, slow.told)
    assert judge_link(["0.001 0.01", "0.001 0.02"], "gloo", "2 nodes").ok
