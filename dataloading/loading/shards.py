"""A dataset's shards on this node: local ones where they lie, remote ones in the cache, all verified.

    <cache>/<fingerprint>/
      shards/00000.arrow            remote datasets: downloaded once, replaced by rename
      verified.json                 which shard files were checked: path, size, mtime_ns, sha256

Everything here can be deleted at any time and is made anew. Files are replaced whole, never truncated, since
other workers have them mapped. The caller holds the folder's lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster import disk
from cluster.errors import InputError
from cluster.store import LocalStore
from dataloading.dataset import SHARD_SCHEMA, Dataset, Shard, shard_key
from dataloading.loading.node_cache import make_room

__all__ = ["REPACK", "Progress", "bring_shards", "missing_bytes", "read_batches", "replace_file", "temporary_in"]

Progress = Callable[[str, int, int], None]
"""Called with (what is counted, done, total)."""

REPACK = "Copy the dataset again from where it was packed, or pack the source images again (`xdist-train pack`)."

_STAMPS = "verified.json"
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
            path.unlink()  # whoever has it mapped keeps it
    _fetch(dataset, number, path)


def _fetch(dataset: Dataset, number: int, path: Path) -> None:
    key, shard = shard_key(number), dataset.info.shards[number]
    if not dataset.store.exists(key):
        raise InputError(f"{dataset.store.locate(key)} is missing, though dataset.json lists it. {REPACK}")
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
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": shard.sha256}


def _read_stamps(path: Path) -> dict[str, Any]:
    try:
        stamps = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # nothing checked yet, or not readable: check again
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _verify(path: Path, shard: Shard, where: str = "") -> None:
    """Bytes, then structure: a reader that trusts the offsets must never see others.

    Raises:
        InputError: the file is not the shard that was packed.
    """
    where = where or str(path)
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
    except pa.ArrowInvalid as error:
        raise InputError(f"{where} is not a readable shard ({error}). {REPACK}") from None
    rows = sum(batch.num_rows for batch in batches)
    if rows != shard.rows or any(batch.schema != SHARD_SCHEMA for batch in batches):
        raise InputError(f"{where} is not a shard of {shard.rows} rows, as dataset.json says. {REPACK}")


def read_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a shard as views of the file, which stays mapped when closed."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


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
