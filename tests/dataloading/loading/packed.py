"""Small packed datasets for the loader's tests, written by the schemas of `dataset.py` and nothing else.

The loader must be testable without the packer, and the packer's own faults must not hide in its tests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataloading.dataset import (
    INFO_KEY,
    MANIFEST_KEY,
    MANIFEST_SCHEMA,
    SHARD_SCHEMA,
    SPLITS,
    Dataset,
    DatasetInfo,
    Shard,
    open_dataset,
    shard_key,
)


def find_real_oct_files() -> list[Path]:
    """The real OCT files of `$XDIST_REAL_DATA`, by default beside the checkout; maybe none."""
    root = Path(os.environ.get("XDIST_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))
    return sorted((root / "oct_real").glob("*/*.jpeg"))


def real_oct_files() -> list[Path]:
    """The real OCT files, or a skip that says so."""
    files = find_real_oct_files()
    if not files:
        pytest.skip("no real OCT images beside the checkout; set XDIST_REAL_DATA")
    return files


def speckled_picture(number: int, width: int, height: int, channels: int = 1) -> np.ndarray:
    """A smooth random picture, uint8 [height, width] or [height, width, 3]."""
    noise = np.random.default_rng(number).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3).reshape((height, width, channels)[: 2 if channels == 1 else 3])


def encode_jpeg(picture: np.ndarray) -> bytes:
    """The picture as JPEG bytes."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def stand_in(content: bytes) -> bytes:
    """What has the header of a PNG of 8 x 8 pixels and no picture behind it: it can be packed, not decoded."""
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\x00\x08\x00\x00\x00\x08" + content


def write_dataset(
    folder: Path,
    images: Sequence[bytes],
    labels: Sequence[int],
    *,
    channels: int = 1,
    splits: Sequence[str] | None = None,
    rows_per_shard: int = 5,
    rows_per_batch: int = 3,
) -> Dataset:
    """Pack encoded images as they are; labels ascend. Every image is its own patient."""
    splits = splits or ["train"] * len(images)
    shards = [
        _write_shard(folder, number, list(enumerate(images))[first : first + rows_per_shard], labels, rows_per_batch)
        for number, first in enumerate(range(0, len(images), rows_per_shard))
    ]
    manifest_sha256 = _write_manifest(folder, images, labels, splits, rows_per_shard)
    classes = tuple(f"class{number}" for number in range(max(labels) + 1))
    info = DatasetInfo(
        classes=classes,
        channels=channels,
        mean=(0.25,) * channels,
        std=(0.2,) * channels,
        counts={name: list(labels).count(number) for number, name in enumerate(classes)},
        num_patients=len(images),
        num_quarantined=0,
        fractions=(0.7, 0.15, 0.15),
        seed=0,
        shards=tuple(shards),
        manifest_sha256=manifest_sha256,
        fingerprint=hashlib.sha256(b"".join(shard.sha256.encode() for shard in shards)).hexdigest(),
        source="test",
    )
    (folder / INFO_KEY).write_text(json.dumps(info.to_json()))
    return open_dataset(str(folder))


def _write_shard(
    folder: Path, number: int, items: Sequence[tuple[int, bytes]], labels: Sequence[int], rows_per_batch: int
) -> Shard:
    columns = {
        "id": [identity for identity, _ in items],
        "label": [labels[identity] for identity, _ in items],
        "image": [image for _, image in items],
        "mask": [None] * len(items),
    }
    path = folder / shard_key(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=SHARD_SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SHARD_SCHEMA) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)
    data = path.read_bytes()
    return Shard(rows=len(items), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _write_manifest(
    folder: Path, images: Sequence[bytes], labels: Sequence[int], splits: Sequence[str], rows_per_shard: int
) -> str:
    shapes = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_BGR) for image in images]
    sizes = [(8, 8) if shape is None else shape.shape[:2] for shape in shapes]
    rows = [
        {
            "id": number,
            "source": f"{number}.jpeg",
            "label": labels[number],
            "patient": f"p{number}",
            "group": None,
            "given_split": splits[number],
            "patient_split": splits[number],
            "shard": number // rows_per_shard,
            "row": number % rows_per_shard,
            "width": sizes[number][1],
            "height": sizes[number][0],
            "bytes": len(image),
            "sha256": hashlib.sha256(image).hexdigest(),
            "phash": 0,
            "has_mask": False,
        }
        for number, image in enumerate(images)
    ]
    assert set(splits) <= set(SPLITS)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), buffer)
    (folder / MANIFEST_KEY).write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
