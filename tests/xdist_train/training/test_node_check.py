"""A node that cannot take part is named, with its reason."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cluster.errors import StoreError
from tests.dataloading.loading.packed import write_dataset
from xdist_train.training.node_check import NodeCheck


def check_of(storage: str, data: str, cache: Path) -> NodeCheck:
    """A check as it arrives on a node."""
    return pickle.loads(pickle.dumps(NodeCheck(storage, data, str(cache), 0.0, 0.0)))


def test_a_node_that_can_has_no_reason(tmp_path: Path, s3: str) -> None:
    """Storage in S3, data on a disk: both are tried, and nothing is left in the storage."""
    write_dataset(tmp_path / "data", [b"x"], [0])
    check = check_of(s3, str(tmp_path / "data"), tmp_path / "cache")
    check.require({"a": check()})


def test_the_node_and_its_reason_are_named(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong credentials on one node of two."""
    write_dataset(tmp_path / "data", [b"x"], [0])
    check = check_of(s3, str(tmp_path / "data"), tmp_path / "cache")
    good = check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"node worker-2 cannot take part .* credentials are wrong"):
        check.require({"worker-1": good, "worker-2": check()})
