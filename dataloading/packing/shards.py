"""Rows into shard files of about one size.

Owns the cut into shards. One record batch a shard, so that a reader finds any row by the offsets of one buffer.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

from cluster.store import Store
from dataloading.dataset import SHARD_SCHEMA, Shard, shard_key

__all__ = ["ShardWriter"]


class ShardWriter:
    """Takes rows in id order; holds one shard in memory.

    Args:
        store: the dataset's folder.
        max_bytes: of images and masks in a shard; a single larger row has a shard of its own.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._rows: list[tuple[int, int, bytes, bytes | None]] = []
        self._num_bytes = 0
        self.shards: list[Shard] = []

    def add(self, row_id: int, label: int, image: bytes, mask: bytes | None) -> tuple[int, int]:
        """Take a row; returns (shard, row within it).

        Raises:
            StoreError: the disk is full.
        """
        num_bytes = len(image) + len(mask or b"")
        if self._rows and self._num_bytes + num_bytes > self._max_bytes:
            self.flush()
        self._rows.append((row_id, label, image, mask))
        self._num_bytes += num_bytes
        return len(self.shards), len(self._rows) - 1

    def flush(self) -> None:
        """Write what is held."""
        if not self._rows:
            return
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(zip(*self._rows, strict=True), SHARD_SCHEMA, strict=True)
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SHARD_SCHEMA) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=SHARD_SCHEMA))
        data = sink.getvalue()
        self._store.write(shard_key(len(self.shards)), data)
        self.shards.append(Shard(len(self._rows), data.size, hashlib.sha256(data).hexdigest()))
        self._rows, self._num_bytes = [], 0
