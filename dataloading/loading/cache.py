"""A packed dataset as a node sees it: verified shards, and an index of each split, mapped into memory.

    <cache>/<fingerprint>/          from `node_cache.py`; shards from `shards.py`
      index-3-<split>-<name>-<of>.npy    one record an image, ordered by (label, id); `of` is of dataset.json
      pixels-...                         from `pixels.py`, where pictures are to be decoded once

A worker keeps no list of images. Records are pages of a mapped file that all workers of a node share; pictures are
read from the shards by those who decode them, through the kernel's page cache, which workers share as well: mapped,
they would end up in the address space of each, and a bad disk would end the process instead of a sentence. Local
datasets are read where they lie.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.config import digest
from cluster.errors import InputError, StoreError
from dataloading.dataset import MANIFEST_KEY, SPLITS, Dataset, shard_key
from dataloading.loading.executor import Encoded, Pictures
from dataloading.loading.node_cache import PIXELS, SHARDS, Lease, cache_root, check_room, locked, take_folder
from dataloading.loading.pixels import Pixels, bring_pixels, missing_pixel_bytes
from dataloading.loading.shards import (
    REPACK,
    Progress,
    bring_shards,
    column_bytes,
    missing_bytes,
    picture_places,
    read_batches,
    replace_file,
)
from dataloading.picture_size import PIXEL_LIMIT
from dataloading.splits import SPLIT_COLUMNS, split_of

__all__ = ["RECORD", "Split", "cache_root", "count_classes", "count_images", "open_split", "require_room"]

Indices = npt.NDArray[np.int64]
Parts = npt.NDArray[np.int8]

_FIELDS = {"id": "<i8", "label": "<i2", "shard": "<i4", "row": "<i4", "width": "<i4", "height": "<i4"}
RECORD = np.dtype([*_FIELDS.items(), ("offset", "<i8"), ("size", "<i4")])
"""One image in the index of a split: `row` is within the shard, width and height are pixels after EXIF orientation, its
encoded bytes are the `size` from `offset` on of the shard's file."""

_INDEX_VERSION = 3
_OPEN_FILES = 256
"""Of a split at a time; a process may open fewer than a set has shards."""


def open_split(
    dataset: Dataset,
    scheme: str,
    name: str,
    cache_dir: Path,
    *,
    limit_gib: float = 0.0,
    pixel_side: float = 0.0,
    progress: Progress | None = None,
) -> Split:
    """One part of a dataset, ready to read; the first caller on a node fetches and verifies shards, makes the index.

    Args:
        dataset: the packed dataset.
        scheme: `data.split`: `patient`, `given`, `given_test` or `fold:K/N`.
        name: `train`, `val` or `test`.
        cache_dir: from `cache_root`.
        limit_gib: `loader.cache_limit_gib`; 0 is what the disk has.
        pixel_side: `LoaderConfig.pixel_side`: pictures are decoded once, for so many pixels; 0 leaves them encoded.
        progress: called as shards are fetched and verified, and pictures decoded.

    Raises:
        InputError: the part has no images, or a shard, the manifest or a picture is not as it was packed.
        StoreError: the cache folder cannot be used, or has no room.
    """
    assert name in SPLITS, name
    folder, lease = take_folder(cache_dir, dataset.info.fingerprint, dataset.store.uri)
    limit_bytes = int(limit_gib * 2**30)
    with locked(folder):
        paths = bring_shards(dataset, folder, limit_bytes=limit_bytes, progress=progress)
        index_path = _index_path(folder, dataset, scheme, name)
        if not index_path.exists():
            _write_indexes(folder, dataset, scheme, name, paths)
        pixels = None
        if pixel_side:
            pixels = bring_pixels(
                dataset,
                partial(_read_manifest, dataset),
                paths,
                folder,
                side=pixel_side,
                name=_info_digest(dataset),
                limit_bytes=limit_bytes,
                progress=progress,
            )
    return Split(dataset, scheme, name, cache_dir, index_path, paths, lease, pixel_side, pixels)


def count_classes(dataset: Dataset, scheme: str) -> dict[str, tuple[int, ...]]:
    """Images of each class in each split, from the manifest alone: no shard is fetched.

    Raises:
        InputError: a split without images, or a manifest that is not the one that was packed.
    """
    manifest = _read_manifest(dataset)
    labels = manifest.column("label").to_numpy()
    parts = _parts(dataset, manifest, scheme)
    rows = {name: _rows_of(dataset, parts, scheme, name) for name in SPLITS}
    count = len(dataset.info.classes)
    return {name: tuple(np.bincount(labels[chosen], minlength=count).tolist()) for name, chosen in rows.items()}


def count_images(dataset: Dataset, scheme: str, name: str) -> int:
    """Images of one split, from the manifest alone; others may be empty.

    Raises:
        InputError: it has none, or the manifest is not the one that was packed.
    """
    return len(_rows_of(dataset, _parts(dataset, _read_manifest(dataset), scheme), scheme, name))


def require_room(dataset: Dataset, cache_dir: Path, limit_gib: float = 0.0, pixel_side: float = 0.0) -> None:
    """Pass if what this node still has to fetch and to decode of a dataset will fit into its cache.

    Raises:
        StoreError: it will not, or the cache folder cannot be used.
    """
    if dataset.store.is_local and not pixel_side:
        return
    folder, lease = take_folder(cache_dir, dataset.info.fingerprint, dataset.store.uri)
    need_bytes, what = missing_bytes(dataset, folder), SHARDS
    if pixel_side:
        name, read = _info_digest(dataset), partial(_read_manifest, dataset)
        need_bytes += missing_pixel_bytes(dataset, read, folder, side=pixel_side, name=name)
        what = f"{SHARDS} and {PIXELS}"
    check_room(cache_dir, folder, need_bytes, int(limit_gib * 2**30), what)
    lease.close()


class Split:
    """The images of one split, by row: 0 .. num_images, ordered by (label, id).

    Holds the class table and open maps only. Pickled as its address: the other process opens it anew, on
    its own node.
    """

    def __init__(
        self,
        dataset: Dataset,
        scheme: str,
        name: str,
        cache_dir: Path,
        index_path: Path,
        shard_paths: Sequence[Path],
        lease: Lease,
        pixel_side: float = 0.0,
        pixels: Pixels | None = None,
    ) -> None:
        self.dataset = dataset
        self.scheme = scheme
        self.name = name
        self.pixels = pixels
        """The set's pictures decoded; None where only encoded ones are at hand."""
        self._pixel_side = pixel_side
        self._cache_dir = cache_dir
        self._lease = lease  # nobody evicts what is open
        self._index = np.asarray(np.load(index_path, mmap_mode="r"))
        self._masks = [_Masks(path) for path in shard_paths]
        self._open = lru_cache(_OPEN_FILES)(lambda number: shard_paths[number].open("rb", buffering=0))
        labels = self._index["label"]
        # By halves: `np.searchsorted` would first copy the labels out of all records.
        ends = [bisect_right(labels, label) for label in range(len(dataset.info.classes))]
        self.class_counts: tuple[int, ...] = tuple(np.diff(ends, prepend=0).tolist())

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(open_split, pixel_side=self._pixel_side)
        return again, (self.dataset, self.scheme, self.name, self._cache_dir)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return len(self._index)

    def records(self, rows: Indices) -> npt.NDArray[Any]:
        """What the index knows of some rows: `RECORD` [n]."""
        return self._index[rows]

    def ids(self, rows: Indices) -> Indices:
        """Ids in the manifest: int64 [n]."""
        return self.records(rows)["id"].astype(np.int64)

    def labels(self, rows: Indices) -> Indices:
        """Class numbers: int64 [n]."""
        return self.records(rows)["label"].astype(np.int64)

    def widths(self, rows: Indices) -> Indices:
        """Pixels after EXIF orientation: int64 [n]."""
        return self.records(rows)["width"].astype(np.int64)

    def heights(self, rows: Indices) -> Indices:
        """Pixels after EXIF orientation: int64 [n]."""
        return self.records(rows)["height"].astype(np.int64)

    def images(self, records: npt.NDArray[Any]) -> Pictures:
        """The encoded bytes behind some records, uint8 [bytes] each, read anew whenever they are asked for.

        Raises:
            StoreError: when asked for, a file cannot be read or has become shorter; opened anew, a split finds out.
        """
        return Pictures(records, self._read)

    def masks(self, records: npt.NDArray[Any]) -> list[Encoded | None]:
        """The lesion masks behind some records, as `images`; None where there is none."""
        pairs = zip(records["shard"].tolist(), records["row"].tolist(), strict=True)
        return [self._masks[shard].of(row) for shard, row in pairs]

    def image(self, row: int) -> Encoded:
        """The encoded bytes of one row of the split: uint8 [bytes], not to be written to."""
        return self.images(self._index[row : row + 1])[0]

    def _read(self, records: npt.NDArray[Any]) -> Iterator[Encoded]:
        columns = (records[name].tolist() for name in ("shard", "offset", "size"))
        for shard, offset, size in zip(*columns, strict=True):
            try:
                file = self._open(shard)
                data = os.pread(file.fileno(), size, offset)
            except OSError as error:
                raise StoreError(f"{shard_key(shard)} of the data set cannot be read any more: {error}.") from None
            if len(data) != size:
                raise StoreError(f"{file.name} has become shorter since it was verified.")
            yield np.frombuffer(data, np.uint8)


class _Masks:
    """The lesion masks of one shard, mapped at first use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, row: int) -> Encoded | None:
        """Bytes of one row by the offsets buffer; a scalar of pyarrow would cost fifty times as much."""
        found = self._column.bytes(row)
        return found if len(found) else None

    @cached_property
    def _column(self) -> _Column:
        return _Column.of(self._path, "mask")


@dataclass(frozen=True, eq=False)
class _Column:
    """First row, and (offsets, bytes) as views, of each record batch; a null is no bytes."""

    first_rows: list[int]
    parts: list[tuple[Indices, Encoded]]

    @classmethod
    def of(cls, path: Path, name: str) -> _Column:
        columns = [batch.column(name) for batch in read_batches(path)]
        first_rows = [0, *accumulate(len(column) for column in columns)]
        return cls(first_rows[:-1], [column_bytes(column) for column in columns])

    def bytes(self, row: int) -> Encoded:
        number = bisect_right(self.first_rows, row) - 1
        offsets, values = self.parts[number]
        place = row - self.first_rows[number]
        return values[offsets[place] : offsets[place + 1]]


def _index_path(folder: Path, dataset: Dataset, scheme: str, name: str) -> Path:
    return folder / f"index-{_INDEX_VERSION}-{_slug(scheme)}-{name}-{_info_digest(dataset)}.npy"


def _write_indexes(folder: Path, dataset: Dataset, scheme: str, wanted: str, shards: Sequence[Path]) -> None:
    """Those of all splits: a run opens three, and what takes long is reading the manifest and dealing the patients."""
    manifest = _read_manifest(dataset)
    parts = _parts(dataset, manifest, scheme)
    _rows_of(dataset, parts, scheme, wanted)  # others may have no images
    for number, name in enumerate(SPLITS):
        chosen = np.flatnonzero(parts == number)
        path = _index_path(folder, dataset, scheme, name)
        if len(chosen) and not path.exists():
            _write_index(path, _build_index(dataset, manifest, chosen, shards))


def _build_index(dataset: Dataset, manifest: pa.Table, chosen: Indices, shards: Sequence[Path]) -> npt.NDArray[Any]:
    """The records of some rows of the manifest, ordered by (label, id)."""
    records = np.empty(len(chosen), RECORD)
    for field in _FIELDS:
        records[field] = manifest.column(field).to_numpy()[chosen]
    _check_records(dataset, records)
    order = np.argsort(records["shard"], kind="stable")
    bounds = np.searchsorted(records["shard"], np.arange(len(shards) + 1), sorter=order)
    for number, path in enumerate(shards):
        mine = order[bounds[number] : bounds[number + 1]]
        if len(mine):
            offsets, sizes = picture_places(path)
            rows = records["row"][mine]
            records["offset"][mine], records["size"][mine] = offsets[rows], sizes[rows]
    return records[np.lexsort((records["id"], records["label"]))]


def _check_records(dataset: Dataset, records: npt.NDArray[Any]) -> None:
    """A record leads to bytes of a shard and says what is to be made of them: neither may lie outside what there is."""
    rows = np.array([shard.rows for shard in dataset.info.shards], np.int64)
    shards = records["shard"]
    outside = (shards < 0) | (shards >= len(rows))
    pixels = records["width"].astype(np.int64) * records["height"]
    bounds = {
        "shard": outside,
        "row": (records["row"] < 0) | (records["row"] >= rows[np.where(outside, 0, shards)]),
        "label": (records["label"] < 0) | (records["label"] >= len(dataset.info.classes)),
        "width": (records["width"] < 1) | (records["height"] < 1) | (pixels > PIXEL_LIMIT),
    }
    for field, wrong in bounds.items():
        if wrong.any():
            image = records[int(wrong.argmax())]
            size = f"{image['width']} x {image['height']} pixels"
            raise InputError(
                f"{dataset.store.locate(MANIFEST_KEY)}: image {image['id']} has {field} {image[field]} (shard "
                f"{image['shard']}, row {image['row']}, label {image['label']}, {size}), which is not possible in a "
                f"set of {len(rows)} shards, {len(dataset.info.classes)} classes and at most {PIXEL_LIMIT:,} pixels a "
                f"picture. {REPACK}"
            )


def _info_digest(dataset: Dataset) -> str:
    """Two sets may claim one fingerprint; neither is shown the other's index."""
    return digest(dataset.info.to_json())[:16]


def _read_manifest(dataset: Dataset) -> pa.Table:
    """The columns that splits and records are made of; read once, so that what is verified is what is read."""
    data = dataset.store.read(MANIFEST_KEY)
    _verify_manifest(dataset, data)
    return dataset.read_manifest(list({*SPLIT_COLUMNS, *_FIELDS}), data)


def _parts(dataset: Dataset, manifest: pa.Table, scheme: str) -> Parts:
    """The split of each row; a scheme that draws takes some 25 us a patient for it."""
    return split_of(manifest, scheme, dataset.info.fractions, dataset.info.seed)


def _rows_of(dataset: Dataset, parts: Parts, scheme: str, name: str) -> Indices:
    """Rows of the manifest that make one split."""
    chosen = np.flatnonzero(parts == SPLITS.index(name))
    if not len(chosen):
        counts = ", ".join(f"{part} {int((parts == number).sum())}" for number, part in enumerate(SPLITS))
        raise InputError(
            f"data.split {scheme!r}: {dataset.store.uri} has no images for {name} ({counts} images). "
            "Choose another data.split, or pack more images."
        )
    return chosen


def _verify_manifest(dataset: Dataset, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != dataset.info.manifest_sha256:
        raise InputError(
            f"{dataset.store.locate(MANIFEST_KEY)} is not the manifest that dataset.json describes. {REPACK}"
        )


def _write_index(path: Path, records: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, records)
    replace_file(path, buffer.getvalue())


def _slug(scheme: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "-", scheme)
