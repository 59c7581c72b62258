"""The folders of a node's cache: who uses one, how large they are, which one goes when room is needed.

    <cache>/.lock                     held for moments, while a folder is taken into use or away
    <cache>/<fingerprint>/            one data set, mode 0700; what lies in it is others' business
      .in-use                         shared lock of everybody who has the data set open; its time is the last use
      .lock                           held while anything in the folder is made
      source.json                     where the data set came from, for people

All locks are the system's: they go with their holder's process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cluster import disk
from cluster.disk import readable_bytes
from cluster.errors import InputError, StoreError

__all__ = [
    "PIXELS",
    "SHARDS",
    "CachedSet",
    "Lease",
    "cache_root",
    "check_room",
    "clear_cache",
    "list_cache",
    "locked",
    "make_room",
    "take_folder",
]

_IN_USE, _SOURCE, _GOING = ".in-use", "source.json", ".going-"
_SPARE_BYTES = 16 << 20
"""Left free beside the shards, for indexes."""

SHARDS, PIXELS = "shards", "decoded pictures (loader.cache=pixels)"
"""What room is wanted for, in words."""


@dataclass(frozen=True)
class CachedSet:
    """One data set in the cache."""

    folder: Path
    source: str
    num_bytes: int
    used_s: float
    in_use: bool


class Lease:
    """A data set in use; it stays in the cache until this is closed or its process ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def close(self) -> None:
        """Use it no more."""
        self._stream.close()


def cache_root(configured: str = "") -> Path:
    """The node's cache folder: as configured, else `~/.cache/xdist-train`."""
    return Path(configured or "~/.cache/xdist-train").expanduser().absolute()


def take_folder(root: Path, fingerprint: str, source: str) -> tuple[Path, Lease]:
    """A data set's folder, ours alone, and the lease that keeps it.

    Raises:
        InputError: a fingerprint that is no name of a folder.
        StoreError: the cache folder cannot be used.
    """
    if not re.fullmatch(r"[0-9A-Za-z_-]{8,128}", fingerprint):
        raise InputError(
            f"dataset.json: fingerprint {fingerprint!r} is not one that `xdist-train pack` writes. "
            "Pack the source images again (`xdist-train pack`)."
        )
    folder = root / fingerprint
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(root):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
            stream = (folder / _IN_USE).open("a")
            fcntl.flock(stream, fcntl.LOCK_SH)
            os.utime(folder / _IN_USE)
            if not (folder / _SOURCE).exists():
                (folder / _SOURCE).write_text(json.dumps({"uri": source}))
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder, Lease(stream)


def _unusable(folder: Path, error: OSError) -> StoreError:
    return disk.failure(
        error,
        f"loader.cache_dir: {folder} cannot be used ({disk.reason(error, folder)}). Give a folder of your own, "
        "on a disk with room.",
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in a folder, on this node; the lock goes with its holder's process, however that ends."""
    try:
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise _unusable(folder, error) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def list_cache(root: Path) -> list[CachedSet]:
    """What the cache holds, least recently used first."""
    if not root.is_dir():
        return []
    with locked(root):
        return _sets(root)


def clear_cache(root: Path) -> list[CachedSet]:
    """Remove every data set that nobody uses; those that went."""
    if not root.is_dir():
        return []
    with locked(root):
        gone = [cached for cached in _sets(root) if _move_away(cached.folder)]
    _remove_moved(root)
    return gone


def make_room(root: Path, own: Path, need_bytes: int, limit_bytes: int = 0, what: str = SHARDS) -> None:
    """Evict whole data sets, least recently used first, until so many bytes fit; never one in use.

    Args:
        root: the cache.
        own: the folder that the bytes are for.
        need_bytes: to come.
        limit_bytes: the cache's size, 0 for what the disk has.
        what: the bytes are of, in words.

    Raises:
        StoreError: they do not fit even then.
    """
    with locked(root):
        _require(root, own, need_bytes, limit_bytes, what)
        others = [cached for cached in _sets(root) if cached.folder != own]
        while others and _lack(root, need_bytes, limit_bytes):
            if _move_away(others.pop(0).folder):
                _remove_moved(root)
        if lack := _lack(root, need_bytes, limit_bytes):
            raise _no_room(root, need_bytes, lack, what)


def check_room(root: Path, own: Path, need_bytes: int, limit_bytes: int = 0, what: str = SHARDS) -> None:
    """Pass if `make_room` would find the room; evicts nothing.

    Raises:
        StoreError: it would not.
    """
    with locked(root):
        _require(root, own, need_bytes, limit_bytes, what)


def _require(root: Path, own: Path, need_bytes: int, limit_bytes: int, what: str) -> None:
    evictable = sum(cached.num_bytes for cached in _sets(root) if cached.folder != own and not cached.in_use)
    if need_bytes and (lack := _lack(root, need_bytes, limit_bytes, evictable)):
        raise _no_room(root, need_bytes, lack, what)


def _no_room(root: Path, need_bytes: int, lack: str, what: str) -> StoreError:
    else_ = "" if what == SHARDS else "do without them (loader.cache=encoded), "
    return StoreError(
        f"loader.cache_dir: {root} has no room for {readable_bytes(need_bytes)} of {what}: {lack}, data sets that "
        f"nobody uses left out. A data set must fit on each node's disk: {else_}free space, set loader.cache_dir to a "
        "folder on a larger disk, or raise loader.cache_limit_gib."
    )


def _lack(root: Path, need_bytes: int, limit_bytes: int, evictable_bytes: int = 0) -> str:
    """What stands against so many bytes more; empty if nothing does."""
    free = shutil.disk_usage(root).free + evictable_bytes
    if need_bytes + _SPARE_BYTES > free:
        return f"the disk has {readable_bytes(free)} free"
    held = sum(_size(folder) for folder in _folders(root)) - evictable_bytes
    if limit_bytes and held + need_bytes > limit_bytes:
        return f"it holds {readable_bytes(held)} and loader.cache_limit_gib allows {readable_bytes(limit_bytes)}"
    return ""


def _folders(root: Path) -> list[Path]:
    """Those with our mark: a user may have put the cache where other things lie."""
    return [mark.parent for mark in root.glob(f"[!.]*/{_IN_USE}")]


def _sets(root: Path) -> list[CachedSet]:
    """Under the root's lock."""
    _remove_moved(root)
    found = []
    for folder in _folders(root):
        used_s = (folder / _IN_USE).stat().st_mtime
        found.append(CachedSet(folder, _source(folder), _size(folder), used_s, not _is_free(folder)))
    return sorted(found, key=lambda cached: cached.used_s)


def _source(folder: Path) -> str:
    try:
        return str(json.loads((folder / _SOURCE).read_text())["uri"])
    except (OSError, ValueError, KeyError):
        return ""


def _size(folder: Path) -> int:
    """Bytes in a folder, while others may add to it or take from it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _is_free(folder: Path) -> bool:
    """Whether nobody has the data set open; only under the root's lock is that still so a moment later."""
    with (folder / _IN_USE).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _move_away(folder: Path) -> bool:
    """Take a folder that nobody uses out of the cache, under the root's lock; whether it went."""
    if not _is_free(folder):
        return False
    folder.rename(folder.with_name(f"{_GOING}{uuid.uuid4().hex}"))
    return True


def _remove_moved(root: Path) -> None:
    for path in root.glob(f"{_GOING}*"):
        shutil.rmtree(path, ignore_errors=True)
