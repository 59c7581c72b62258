"""Rules of the pool: results in order, and an end with a reason when a worker is killed."""

from __future__ import annotations

import os

import pytest

from cluster.errors import RunFailedError
from dataloading.packing.pool import map_in_order


def double_or_die(number: int) -> int:
    """Twice the number, except that 13 kills the process."""
    if number == 13:
        os._exit(1)
    return 2 * number


def test_results_come_in_order_until_a_worker_is_killed() -> None:
    """Results follow their chunks, and a dead worker is an error that says what to do."""
    results = map_in_order(double_or_die, [*range(12), 13], workers=2)
    assert 0 == next(results)
    with pytest.raises(RunFailedError, match=r"fewer workers"):
        list(results)
