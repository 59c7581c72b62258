"""What a search refuses before a cluster is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from tests.tune_spaces.made_up_parts import write_small
from tune_spaces.launch import _draft


def test_losses_of_differently_smoothed_labels_are_not_compared(tmp_path: Path) -> None:
    """A recipe may select its epoch by loss; trials that change the loss need another figure."""
    dataset, place = write_small(tmp_path / "set"), tmp_path / "runs"
    settings = ["space=xray", f"data.uri={dataset.store.uri}", f"storage.uri={place}", "model.weights=none"]
    settings += [f"loader.cache_dir={tmp_path}/cache", "train.batch_size=6"]
    with pytest.raises(InputError, match=r"searches loss\.label_smoothing.*e\.g\. train\.metric=auroc_macro"):
        _draft("xray", settings)
    assert not place.exists()
    assert _draft("xray", [*settings, "train.metric=auroc_macro"]).config.train.metric == "auroc_macro"
