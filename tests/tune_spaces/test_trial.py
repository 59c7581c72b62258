"""What a trial's failure is called."""

from __future__ import annotations

import pytest

from cluster.errors import InputError, MissingObjectError, NoRoomError, RunFailedError, XdistError
from tune_spaces.trial import _kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NoRoomError("a node is away"), "no_room"),
        (InputError("impossible"), "bad_input"),
        (MissingObjectError("gone"), "storage"),
        (RunFailedError("non_finite_loss", "NaN"), "non_finite_loss"),
    ],
)
def test_a_trial_is_not_to_blame_for_the_cluster(error: XdistError, kind: str) -> None:
    """A cluster that is too small now is tried again; what the configuration is to blame for is not."""
    assert kind == _kind(error)
