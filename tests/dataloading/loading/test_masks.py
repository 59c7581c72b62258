"""Lesion masks by row of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataloading.dataset import SHARD_SCHEMA
from dataloading.loading.cache import open_split
from tests.dataloading.loading import packed
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, stand_in, write_dataset


def test_masks_come_with_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of each row's own mask, None where it has none, over shards and record batches."""
    masks = [None if number % 3 == 0 else stand_in(bytes([number]) * (number + 1)) for number in range(12)]
    table = pa.table

    def with_masks(columns: dict[str, list[object]], schema: pa.Schema) -> pa.Table:
        if schema == SHARD_SCHEMA:
            columns["mask"] = [masks[int(str(number))] for number in columns["id"]]
        return table(columns, schema=schema)

    monkeypatch.setattr(packed.pa, "table", with_masks)
    images = [encode_jpeg(speckled_picture(number, 16, 16)) for number in range(12)]
    dataset = write_dataset(tmp_path / "data", images, [0] * 12, rows_per_shard=5, rows_per_batch=2)
    monkeypatch.undo()
    split = open_split(dataset, "patient", "train", tmp_path / "cache")
    found = split.masks(split.records(np.arange(12)))
    assert masks == [None if mask is None else mask.tobytes() for mask in found]
    assert images == [image.tobytes() for image in split.images(split.records(np.arange(12)))]


def test_a_set_without_masks_has_none(tmp_path: Path) -> None:
    """Whole columns of nulls."""
    images = [encode_jpeg(speckled_picture(number, 16, 16)) for number in range(4)]
    split = open_split(write_dataset(tmp_path / "data", images, [0] * 4), "patient", "train", tmp_path / "cache")
    assert [None] * 4 == split.masks(split.records(np.arange(4)))
