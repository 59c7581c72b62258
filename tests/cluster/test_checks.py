"""What the doctor makes of the facts: green where all is well, red with what to do where it is not."""

from __future__ import annotations

from types import SimpleNamespace

from cluster.checks import check_workers, judge_clocks, judge_shared_memory, judge_token, judge_versions
from cluster.doctor import Finding

_HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "this program": "0123"}


def _one(findings: object) -> Finding:
    (finding,) = list(findings)  # type: ignore[call-overload]
    assert finding.ok or finding.todo
    return finding


def test_a_cluster_without_workers_is_red() -> None:
    """A head alone, without CPUs, trains nothing."""
    some = SimpleNamespace(workers=["a", "b"], gpus={"a": 4, "b": 4})
    assert (True, "2 with 8 GPUs") == ((found := _one(check_workers(some))).ok, found.told)  # type: ignore[arg-type]
    assert not _one(check_workers(SimpleNamespace(workers=[], gpus={}))).ok  # type: ignore[arg-type]


def test_versions_must_be_the_same() -> None:
    """The names that differ are said with both versions, a package that is missing too."""
    assert _one(judge_versions(_HERE, {"a": _HERE})).ok
    older = {key: value for key, value in _HERE.items() if key != "torch"} | {"ray": "2.59.0"}
    finding = _one(judge_versions(_HERE, {"a": older}))
    assert (False, "versions on a") == (finding.ok, finding.what)
    assert "ray 2.59.0, here 2.60.0; torch missing, here 2.13.0" == finding.told


def test_a_cluster_without_a_token_is_red() -> None:
    """On is green."""
    assert _one(judge_token(True)).ok
    assert "RAY_AUTH_MODE=token" in _one(judge_token(False)).todo


def test_little_shared_memory_is_red() -> None:
    """Docker's 64 MiB are too few."""
    green, red = judge_shared_memory({"a": 2 << 30, "b": 64 << 20})
    assert (True, False, "64.0 MiB free") == (green.ok, red.ok, red.told)
    assert "--shm-size" in red.todo


def test_a_clock_is_off_by_what_the_question_does_not_explain() -> None:
    """A clock read between two moments of ours may be anything between them."""
    clocks = {"right": 101.0, "late": 89.0, "early": 115.0, "nearly": 98.0}
    found = {finding.what: finding for finding in judge_clocks(clocks, before=100.0, after=103.0)}
    assert {"right": True, "late": False, "early": False, "nearly": True} == {
        what.removeprefix("clock of "): finding.ok for what, finding in found.items()
    }
    assert "11.0 s or more off" == found["clock of late"].told
