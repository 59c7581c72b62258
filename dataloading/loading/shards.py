"""A dataset's shards on this node: local ones where they lie, remote ones in the cache, all verified.

    <cache>/<fingerprint>/
      shards/00000.arrow            remote datasets: downloaded once, replaced by rename
      verified.json                 which shard files were checked: path, size, mtime_ns, sha256

Everything here can be deleted at any time and is made anew. Files are replaced whole, never truncated, since
other workers have them open. The caller holds the folder's lock.

A matching digest says that a file is the packer's, not that the packer was a friend. So each shard is read once in
full before pictures are read from it: offsets that leave their buffer and pictures that no memory holds are refused
here, and the hot path need not look again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster import disk
from cluster.errors import InputError
from cluster.store import LocalStore
from dataloading.dataset import SHARD_SCHEMA, Dataset, Shard, shard_key
from dataloading.loading.executor import Encoded
from dataloading.loading.node_cache import make_room
from dataloading.picture_size import PIXEL_LIMIT, read_size

__all__ = [
    "REPACK",
    "Progress",
    "bring_shards",
    "column_bytes",
    "missing_bytes",
    "picture_places",
    "read_batches",
    "replace_file",
    "temporary_in",
]

Offsets = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with (what is counted, done, total)."""

REPACK = "Copy the dataset again from where it was packed, or pack the source images again (`xdist-train pack`)."

_STAMPS = "verified.json"
_CHECKS = 2
"""Version of what `_verify` looks at: a file that an older program has checked is checked again."""
_THREADS = 8
_TEMPORARY = ".tmp-"


def bring_shards(
    dataset: Dataset, folder: Path, *, limit_bytes: int = 0, progress: Progress | None = None
) -> list[Path]:
    """Where each shard lies on this node, after the new ones were fetched and checked, in parallel.

    Args:
        dataset: the packed dataset.
        folder: the data set's folder in the cache, locked.
        limit_bytes: size that the cache may have, 0 for what the disk has.
        progress: called as shards are there.

    Raises:
        InputError: a shard is missing or not the one that was packed.
        StoreError: the storage does not give it, or there is no room.
    """
    _remove_leftovers(folder)
    if isinstance(dataset.store, LocalStore):
        paths = [_locate(dataset, dataset.store, number) for number in range(len(dataset.info.shards))]
        ensure: Callable[[int], None] = lambda number: _verify(paths[number], dataset.info.shards[number])  # noqa: E731
    else:
        paths = _cached_paths(dataset, folder)
        if need_bytes := missing_bytes(dataset, folder):
            make_room(folder.parent, folder, need_bytes, limit_bytes)
        ensure = lambda number: _ensure_cached(dataset, number, paths[number])  # noqa: E731
    _ensure_new(folder, paths, dataset.info.shards, ensure, progress or (lambda what, done, total: None))
    return paths


def missing_bytes(dataset: Dataset, folder: Path) -> int:
    """How much a remote dataset still has to download on this node."""
    if dataset.store.is_local:
        return 0
    pairs = zip(_cached_paths(dataset, folder), dataset.info.shards, strict=True)
    return sum(shard.bytes for path, shard in pairs if not path.is_file())


def _cached_paths(dataset: Dataset, folder: Path) -> list[Path]:
    return [folder / shard_key(number) for number in range(len(dataset.info.shards))]


def _locate(dataset: Dataset, store: LocalStore, number: int) -> Path:
    path = store.path(shard_key(number))
    if not path.is_file():
        raise InputError(f"{path} is missing, though {dataset.store.uri} lists it. {REPACK}")
    store.refuse_links_out(shard_key(number))
    return path


def _ensure_new(
    folder: Path, paths: Sequence[Path], shards: Sequence[Shard], ensure: Callable[[int], None], show: Progress
) -> None:
    """Run `ensure`, in parallel, for files that are new or changed in size or time since they were checked."""
    known = _read_stamps(folder / _STAMPS)
    pairs = list(zip(paths, shards, strict=True))
    fresh = [number for number, pair in enumerate(pairs) if known.get(str(pair[0]), 0) != _stamp(*pair)]
    if not fresh:
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = [pool.submit(ensure, number) for number in fresh]
        try:
            for done, task in enumerate(tasks):
                show("shards", done, len(fresh))
                task.result()
        finally:
            for task in tasks:
                task.cancel()
    stamps = {str(pair[0]): _stamp(*pair) for pair in pairs}
    replace_file(folder / _STAMPS, json.dumps(known | stamps, indent=1).encode())


def _ensure_cached(dataset: Dataset, number: int, path: Path) -> None:
    """A shard of a remote dataset in the cache; one that is damaged there is fetched again."""
    shard = dataset.info.shards[number]
    if path.is_file() and path.stat().st_size == shard.bytes:
        try:
            return _verify(path, shard)
        except InputError:
            path.unlink()  # whoever has it open keeps it
    _fetch(dataset, number, path)


def _fetch(dataset: Dataset, number: int, path: Path) -> None:
    key, shard = shard_key(number), dataset.info.shards[number]
    found = dataset.store.info(key)
    if found is None:
        raise InputError(f"{dataset.store.locate(key)} is missing, though dataset.json lists it. {REPACK}")
    _check_bytes(dataset.store.locate(key), found.num_bytes, shard)  # room was made for so many
    with temporary_in(path.parent) as temporary:
        dataset.store.download(key, temporary)
        _verify(temporary, shard, dataset.store.locate(key))
        os.replace(temporary, path)


def _stamp(path: Path, shard: Shard) -> dict[str, Any] | None:
    """None where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": shard.sha256, "checks": _CHECKS}


def _read_stamps(path: Path) -> dict[str, Any]:
    try:
        stamps = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # nothing checked yet, or not readable: check again
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _check_bytes(where: str, num_bytes: int, shard: Shard) -> None:
    if num_bytes != shard.bytes:
        raise InputError(
            f"{where} is damaged: it has {num_bytes:,} bytes, but dataset.json says {shard.bytes:,}. {REPACK}"
        )


def _verify(path: Path, shard: Shard, where: str = "") -> None:
    """Size, bytes, structure, pictures: a reader that trusts the offsets must never see others.

    Raises:
        InputError: the file is not the shard that was packed.
    """
    where = where or str(path)
    _check_bytes(where, path.stat().st_size, shard)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != shard.sha256:
        raise InputError(
            f"{where} is damaged: its sha256 is {digest[:12]}..., "
            f"but dataset.json says {shard.sha256[:12]}.... {REPACK}"
        )
    try:
        batches = read_batches(path)
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where} is not a readable shard ({error}). {REPACK}") from None
    rows = sum(batch.num_rows for batch in batches)
    if rows != shard.rows or any(batch.schema != SHARD_SCHEMA for batch in batches):
        raise InputError(f"{where} is not a shard of {shard.rows} rows, as dataset.json says. {REPACK}")
    _check_pictures(batches, where)


def _check_pictures(batches: Sequence[pa.RecordBatch], where: str) -> None:
    """By the offsets alone, as the hot path reads them; no bytes are no picture."""
    first_rows = accumulate((batch.num_rows for batch in batches), initial=0)
    for first_row, batch in zip(first_rows, batches, strict=False):
        for name in ("image", "mask"):
            bounds, values = column_bytes(batch.column(name))
            for row, (start, stop) in enumerate(pairwise(bounds.tolist()), start=first_row):
                size = read_size(values.data[start:stop]) if stop > start else (0, 0)
                if size is None or size[0] * size[1] > PIXEL_LIMIT:
                    raise InputError(f"{where}: the {name} in row {row} {_what_is_wrong(size)}. {REPACK}")


def _what_is_wrong(size: tuple[int, int] | None) -> str:
    if size is None:
        return "is no JPEG or PNG as `pack` writes them"
    return f"claims {size[0]:,} x {size[1]:,} pixels, and at most {PIXEL_LIMIT:,} in all are decoded"


def read_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a shard as views of the file, which stays mapped when closed."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def picture_places(path: Path) -> tuple[Offsets, Offsets]:
    """Where the pictures of a shard lie in its file: first byte, and number of bytes, of each row.

    Raises:
        InputError: they do not lie there as they are: it is compressed.
    """
    with pa.memory_map(str(path)) as source:
        whole = source.read_buffer()
        reader = pa.ipc.open_file(source)
        columns = [reader.get_batch(number).column("image") for number in range(reader.num_record_batches)]
    starts, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for column in columns:
        bounds, values = column_bytes(column)
        first = values.ctypes.data - whole.address if len(values) else 0
        if not 0 <= first <= whole.size - len(values):
            raise InputError(f"{path} is compressed, and `pack` compresses no shards. {REPACK}")
        starts.append(bounds[:-1] + first)
        sizes.append(np.diff(bounds))
    return np.concatenate(starts), np.concatenate(sizes)


def column_bytes(column: pa.LargeBinaryArray) -> tuple[Offsets, Encoded]:
    """(offsets int64 [rows + 1], bytes) of a column of encoded bytes, as views; a null is no bytes."""
    _, offsets, values = column.buffers()
    bounds = np.frombuffer(offsets, np.int64, column.offset + len(column) + 1)[column.offset :]
    return bounds, np.frombuffer(values or b"", np.uint8)  # a column of nulls has no bytes at all


def replace_file(path: Path, data: bytes) -> None:
    """Put a file in the cache, whole.

    Raises:
        StoreError: the disk is full or not writable.
    """
    with temporary_in(path.parent) as temporary:
        temporary.write_bytes(data)
        os.replace(temporary, path)


@contextmanager
def temporary_in(folder: Path) -> Iterator[Path]:
    """A path to write to and rename from; nothing stays there.

    Raises:
        StoreError: the disk is full or not writable.
    """
    temporary = folder / f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        yield temporary
    except OSError as error:
        raise disk.failure(
            error,
            f"loader.cache_dir: {folder}: cannot write ({disk.reason(error, folder)}). A data set must fit on each "
            "node's disk: free space, or set loader.cache_dir to a folder on a larger disk.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Of holders of the lock who were killed."""
    for path in (*folder.glob(f"{_TEMPORARY}*"), *folder.glob(f"shards/{_TEMPORARY}*")):
        path.unlink(missing_ok=True)
