"""Packed sets of any size from a few pictures: a shard is written once and stands in all places of its kind.

Written by the schemas of `dataset.py`; every row is its own patient. The manifest is of full size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataloading.dataset import (
    INFO_KEY,
    MANIFEST_KEY,
    MANIFEST_SCHEMA,
    SHARD_SCHEMA,
    Dataset,
    DatasetInfo,
    Shard,
    open_dataset,
    shard_key,
)
from dataloading.picture_size import read_size

__all__ = ["write_large_set"]

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")


def write_large_set(
    folder: Path, pictures: Sequence[bytes], num_images: int, *, rows_per_shard: int = 4000, linked: bool = False
) -> Dataset:
    """The set in a new folder, a tenth of it val and a tenth test.

    Args:
        linked: shards of as many rows are one file under many names; else each has its own bytes on the disk.
    """
    (folder / "shards").mkdir(parents=True)
    made: dict[int, Shard] = {}
    shards = []
    for number, first in enumerate(range(0, num_images, rows_per_shard)):
        rows = min(rows_per_shard, num_images - first)
        path, model = folder / shard_key(number), folder / f"shard-of-{rows}"
        if rows not in made:
            made[rows] = _write_shard(model, pictures, rows)
        if linked:
            os.link(model, path)
        else:
            path.write_bytes(model.read_bytes())
        shards.append(made[rows])
    labels = np.arange(num_images, dtype=np.int64) * len(CLASSES) // num_images
    info = DatasetInfo(
        classes=CLASSES,
        channels=1,
        mean=(0.25,),
        std=(0.2,),
        counts={name: int((labels == number).sum()) for number, name in enumerate(CLASSES)},
        num_patients=num_images,
        num_quarantined=0,
        fractions=(0.8, 0.1, 0.1),
        seed=0,
        shards=tuple(shards),
        manifest_sha256=_write_manifest(folder / MANIFEST_KEY, pictures, labels, rows_per_shard),
        fingerprint=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        source="bench",
    )
    for rows in made:
        (folder / f"shard-of-{rows}").unlink()
    (folder / INFO_KEY).write_text(json.dumps(info.to_json()))
    return open_dataset(str(folder))


def _write_shard(path: Path, pictures: Sequence[bytes], rows: int) -> Shard:
    columns = {
        "id": np.arange(rows),
        "label": np.zeros(rows, np.int16),
        "image": [pictures[row % len(pictures)] for row in range(rows)],
        "mask": [None] * rows,
    }
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SHARD_SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=SHARD_SCHEMA), max_chunksize=1000)
    data = path.read_bytes()
    return Shard(rows=rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _write_manifest(path: Path, pictures: Sequence[bytes], labels: np.ndarray, rows_per_shard: int) -> str:
    ids = np.arange(len(labels), dtype=np.int64)
    rows = ids % rows_per_shard
    kinds = rows % len(pictures)
    sizes = np.array([read_size(memoryview(picture)) for picture in pictures])
    parts = np.array(["train"] * 8 + ["val", "test"], dtype=object)[ids % 10]
    columns = {
        "id": ids,
        "source": [f"{CLASSES[label]}/{CLASSES[label]}-{number}-1.jpeg" for number, label in enumerate(labels)],
        "label": labels.astype(np.int16),
        "patient": [f"{CLASSES[label]}-{number}" for number, label in enumerate(labels)],
        "group": pa.nulls(len(ids), pa.string()),
        "given_split": parts,
        "patient_split": parts,
        "shard": (ids // rows_per_shard).astype(np.int32),
        "row": rows.astype(np.int32),
        "width": sizes[kinds, 0].astype(np.int32),
        "height": sizes[kinds, 1].astype(np.int32),
        "bytes": np.array([len(picture) for picture in pictures], np.int64)[kinds],
        "sha256": [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(ids))],
        "phash": np.random.default_rng(0).integers(0, 2**63, len(ids)).astype(np.uint64),
        "has_mask": np.zeros(len(ids), bool),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), buffer)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
