"""What becomes of a training that came to no end of its own."""

from __future__ import annotations

import pytest

from tune_spaces.task import fate_of, launch_config
from xdist_train.config import resolve_config


@pytest.mark.parametrize(
    ("status", "reason", "tries", "fate"),
    [
        ("finished", "", 1, "settled"),
        ("pruned", "asha after epoch 1", 1, "settled"),
        ("failed", "non_finite_loss: NaN", 0, "settled"),
        ("failed", "no_room: a node is away", 1, "again"),
        ("failed", "no_room: a node is away", 2, "hopeless"),
        ("failed", "storage: away", 0, "again"),
        ("failed", "lost_workers: gone", 1, "again"),
        ("failed", "lost_workers: gone", 2, "settled"),
        ("stopped", "", 0, "again"),
        ("stopped", "", 2, "hopeless"),
    ],
)
def test_only_what_may_end_otherwise_is_tried_again(status: str, reason: str, tries: int, fate: str) -> None:
    """Once; after that the cluster's fault ends all, and a lost process is the configuration's after all."""
    assert fate == fate_of(status, reason, tries)


def test_a_launch_of_many_is_patient_resumable_and_makes_no_maps() -> None:
    """And has its GPU decided once, unless it says so itself."""
    config = resolve_config("demo", ["cam.after=true", "scale.use_gpu=auto"])
    mine = launch_config(config, "a", use_gpu=True)
    assert ("a", "auto", 3600.0, "yes", False) == (
        mine.run.name,
        mine.run.resume,
        mine.scale.wait_s,
        mine.scale.use_gpu,
        mine.cam.after,
    )
    assert "auto" == launch_config(config, "a", use_gpu=None).scale.use_gpu
    told = resolve_config("demo", ["scale.wait_s=5", "scale.use_gpu=no"])
    assert (5.0, "no") == (launch_config(told, "a", use_gpu=True).scale.wait_s, told.scale.use_gpu)
