"""A packed dataset as a node sees it: verified shards, mapped into memory, and an index of each split.

    <cache>/<fingerprint>/          mode 0700
      .lock                         held while anything here is made; the system frees it if its holder dies
      verified.json                 which shard files were checked: path, size, mtime_ns, sha256
      index-1-<split>-<name>.npy    one record an image, ordered by (label, id)

Everything here can be deleted at any time and is made anew. Files are replaced whole, never truncated,
since other workers have them mapped. A worker keeps no list of images: records and pictures are pages of
mapped files that all workers of a node share.

A shard is located, then verified. Local datasets are mapped where they lie.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import InputError, StoreError
from dataloading.dataset import MANIFEST_KEY, SHARD_SCHEMA, SPLITS, Dataset, Shard, shard_key
from dataloading.loading.executor import Encoded
from dataloading.splits import SPLIT_COLUMNS, split_of

__all__ = ["RECORD", "Split", "cache_root", "open_split"]

Indices = npt.NDArray[np.int64]

RECORD = np.dtype(
    [("id", "<i8"), ("label", "<i2"), ("shard", "<i4"), ("row", "<i4"), ("width", "<i4"), ("height", "<i4")]
)
"""One image in the index of a split; `row` is within the shard, sizes are pixels after EXIF orientation."""

_FIELDS = RECORD.names or ()
_INDEX_VERSION = 1
_VERIFY_THREADS = 8


def cache_root(configured: str = "") -> Path:
    """The node's cache folder: as configured, else `~/.cache/xdist-train`."""
    return Path(configured or "~/.cache/xdist-train").expanduser().absolute()


def open_split(dataset: Dataset, scheme: str, name: str, cache_dir: Path) -> Split:
    """One part of a dataset, ready to read; the first caller on a node verifies shards and makes the index.

    Args:
        dataset: the packed dataset.
        scheme: `data.split`: `patient`, `given` or `fold:K/N`.
        name: `train`, `val` or `test`.
        cache_dir: from `cache_root`.

    Raises:
        InputError: the part has no images, or a shard or the manifest is not the one that was packed.
        StoreError: the cache folder cannot be used.
    """
    assert name in SPLITS, name
    folder = _open_folder(cache_dir, dataset.info.fingerprint)
    with _locked(folder):
        paths = [_locate(dataset, number) for number in range(len(dataset.info.shards))]
        _verify_new(folder, paths, dataset.info.shards)
        index_path = folder / f"index-{_INDEX_VERSION}-{_slug(scheme)}-{name}.npy"
        if not index_path.exists():
            _write_index(index_path, _build_index(dataset, scheme, name))
    return Split(dataset, scheme, name, cache_dir, index_path, paths)


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
    ) -> None:
        self.dataset = dataset
        self.scheme = scheme
        self.name = name
        self._cache_dir = cache_dir
        self._index = np.asarray(np.load(index_path, mmap_mode="r"))
        self._shards = [_MappedShard(path) for path in shard_paths]
        ends = np.searchsorted(self._index["label"], np.arange(len(dataset.info.classes)), side="right")
        self.class_counts: tuple[int, ...] = tuple(int(count) for count in np.diff(ends, prepend=0))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_split, (self.dataset, self.scheme, self.name, self._cache_dir)

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

    def images(self, records: npt.NDArray[Any]) -> list[Encoded]:
        """The encoded bytes behind some records, as views of the shards' memory; nothing is read yet."""
        pairs = zip(records["shard"].tolist(), records["row"].tolist(), strict=True)
        return [self._shards[shard].image(row) for shard, row in pairs]

    def image(self, row: int) -> Encoded:
        """The encoded bytes of one row of the split: uint8 [bytes], a view that cannot be written to."""
        return self.images(self._index[row : row + 1])[0]


class _MappedShard:
    """The image column of one shard, mapped at first use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def image(self, row: int) -> Encoded:
        """Bytes of one row by the offsets buffer; a scalar of pyarrow would cost fifty times as much."""
        first_rows, columns = self._columns
        number = bisect_right(first_rows, row) - 1
        offsets, values = columns[number]
        place = row - first_rows[number]
        return values[offsets[place] : offsets[place + 1]]

    @cached_property
    def _columns(self) -> tuple[list[int], list[tuple[Indices, Encoded]]]:
        """First row, and (offsets, bytes) as views, of each record batch."""
        columns = [batch.column("image") for batch in _read_batches(self._path)]
        first_rows = [0, *accumulate(len(column) for column in columns)]
        return first_rows[:-1], [_buffers(column) for column in columns]


def _read_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a shard as views of the file, which stays mapped when closed."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _buffers(column: pa.LargeBinaryArray) -> tuple[Indices, Encoded]:
    _, offsets, values = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return bounds, np.frombuffer(values, np.uint8)


def _locate(dataset: Dataset, number: int) -> Path:
    """Where a shard lies on this node. A dataset in a remote store would be fetched here."""
    path = dataset.store.path(shard_key(number))
    if not path.is_file():
        raise InputError(f"{path} is missing, though {dataset.store.uri} lists it. {_REPACK}")
    return path


_REPACK = "Copy the dataset again from where it was packed, or pack the source images again (`xdist-train pack`)."


def _verify_new(folder: Path, paths: Sequence[Path], shards: Sequence[Shard]) -> None:
    """Check, in parallel, the shard files that are new or changed in size or time since they were checked."""
    stamps_path = folder / "verified.json"
    known = _read_stamps(stamps_path)
    wanted = {str(path): _stamp(path, shard) for path, shard in zip(paths, shards, strict=True)}
    fresh = [number for number, path in enumerate(paths) if known.get(str(path)) != wanted[str(path)]]
    if not fresh:
        return
    with ThreadPoolExecutor(min(_VERIFY_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda number: _verify(paths[number], shards[number]), fresh):
            pass
    _replace(stamps_path, json.dumps(known | wanted, indent=1).encode())


def _stamp(path: Path, shard: Shard) -> dict[str, Any]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": shard.sha256}


def _read_stamps(path: Path) -> dict[str, Any]:
    try:
        stamps = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # nothing checked yet, or not readable: check again
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _verify(path: Path, shard: Shard) -> None:
    """Bytes, then structure: a reader that trusts the offsets must never see others.

    Raises:
        InputError: the file is not the shard that was packed.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != shard.sha256:
        raise InputError(
            f"{path} is damaged: its sha256 is {digest[:12]}..., "
            f"but dataset.json says {shard.sha256[:12]}.... {_REPACK}"
        )
    try:
        batches = _read_batches(path)
        for batch in batches:
            batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable shard ({error}). {_REPACK}") from None
    rows = sum(batch.num_rows for batch in batches)
    if rows != shard.rows or any(batch.schema != SHARD_SCHEMA for batch in batches):
        raise InputError(f"{path} is not a shard of {shard.rows} rows, as dataset.json says. {_REPACK}")


def _build_index(dataset: Dataset, scheme: str, name: str) -> npt.NDArray[Any]:
    """The records of one split, ordered by (label, id)."""
    _verify_manifest(dataset)
    manifest = dataset.read_manifest(list({*SPLIT_COLUMNS, *_FIELDS}))
    parts = split_of(manifest, scheme, dataset.info.fractions, dataset.info.seed)
    chosen = np.flatnonzero(parts == SPLITS.index(name))
    if not len(chosen):
        counts = ", ".join(f"{part} {int((parts == number).sum())}" for number, part in enumerate(SPLITS))
        raise InputError(
            f"data.split {scheme!r}: {dataset.store.uri} has no images for {name} ({counts} images). "
            "Choose another data.split, or pack more images."
        )
    records = np.empty(len(chosen), RECORD)
    for field in _FIELDS:
        records[field] = manifest.column(field).to_numpy()[chosen]
    return records[np.lexsort((records["id"], records["label"]))]


def _verify_manifest(dataset: Dataset) -> None:
    digest = hashlib.sha256(dataset.store.read(MANIFEST_KEY)).hexdigest()
    if digest != dataset.info.manifest_sha256:
        raise InputError(
            f"{dataset.store.path(MANIFEST_KEY)} is not the manifest that dataset.json describes. {_REPACK}"
        )


def _write_index(path: Path, records: npt.NDArray[Any]) -> None:
    with _temporary_in(path.parent) as temporary:
        with temporary.open("wb") as stream:
            np.save(stream, records)
        os.replace(temporary, path)


def _replace(path: Path, data: bytes) -> None:
    with _temporary_in(path.parent) as temporary:
        temporary.write_bytes(data)
        os.replace(temporary, path)


@contextmanager
def _temporary_in(folder: Path) -> Iterator[Path]:
    temporary = folder / f".tmp-{os.getpid()}-{threading.get_ident()}"
    try:
        yield temporary
    except OSError as error:
        raise StoreError(f"{folder}: cannot write ({error.strerror}). Free space, or set loader.cache_dir.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _open_folder(cache_dir: Path, fingerprint: str) -> Path:
    """The dataset's folder in the cache, ours alone."""
    if not re.fullmatch(r"[0-9A-Za-z_-]{8,128}", fingerprint):
        raise InputError(
            f"dataset.json: fingerprint {fingerprint!r} is not one that `xdist-train pack` writes. {_REPACK}"
        )
    folder = cache_dir / fingerprint
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise StoreError(
            f"loader.cache_dir: {folder} cannot be used ({error.strerror}). Give a folder of your own."
        ) from error
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in a folder, on this node; the lock goes with its holder's process, however that ends."""
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _slug(scheme: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "-", scheme)
