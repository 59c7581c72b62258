"""Errors cross processes."""

from __future__ import annotations

import pickle

import pytest

from cluster.errors import (
    InputError,
    MissingObjectError,
    NoRoomError,
    RunFailedError,
    StoppedError,
    StoreError,
    XdistError,
)
from cluster.runs import StaleDriverError
from dataloading.loading.executor import UndecodableError
from xdist_train.training.checkpoint import DamagedCheckpointError

_ERRORS = [
    InputError("a"),
    NoRoomError("a"),
    StoreError("b"),
    MissingObjectError("b"),
    RunFailedError("kind", "c"),
    StoppedError("d"),
    StaleDriverError("e"),
    DamagedCheckpointError("f"),
    UndecodableError(3, "g"),
]


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: Exception) -> None:
    """Type, text and fields come back."""
    back = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), vars(error)) == (type(back), str(back), vars(back))


def test_exit_codes() -> None:
    """1 failed, 2 bad input, 75 stopped."""
    assert [error.exit_code for error in (XdistError, InputError, StoppedError, StoreError)] == [1, 2, 75, 1]
