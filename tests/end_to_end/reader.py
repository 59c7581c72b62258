"""Somebody who reads a run while it goes on, and believes what it says may be read."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load

from cluster.errors import MissingObjectError, XdistError
from cluster.runs import CHECKPOINTS, RUN
from cluster.store import Store

__all__ = ["Reader", "check_all", "named_checkpoints"]

_SNAPSHOT = f"{CHECKPOINTS}/checkpoint_manager_snapshot.json"
_CHECKPOINT_FILES = {"model.safetensors", "optim.safetensors", "state.json"}
_PARSERS: Mapping[str, Callable[[bytes], Any]] = {
    ".json": json.loads,
    ".safetensors": load,
    ".parquet": lambda data: pq.read_table(io.BytesIO(data)),
    ".jsonl": lambda data: [json.loads(line) for line in data.splitlines()],
}
_UNREADABLE = (XdistError, ValueError, OSError, SafetensorError)


class Reader(threading.Thread):
    """Polls a run until `stop`; keeps what it read, and what should have been whole and was not."""

    def __init__(self, run: Store) -> None:
        super().__init__(daemon=True)
        self.store = run
        self.seen: set[str] = set()
        self.wrong: list[str] = []
        self.saw_checkpoint = threading.Event()
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.1):
            for key in _listed(self.store):
                self._try(key, lambda key=key: _read_object(self.store, key))
            for name in named_checkpoints(self.store):
                self._try(name, lambda name=name: _read_checkpoint(self.store, name))
                self.saw_checkpoint.set()

    def _try(self, what: str, read: Callable[[], None]) -> None:
        try:
            read()
            self.seen.add(what)
        except _UNREADABLE as error:
            self.wrong.append(f"{what}: {error!r}")

    def stop(self) -> None:
        """Read no more; it must have read until now."""
        assert self.is_alive()
        self._end.set()
        self.join()


def check_all(run: Store) -> set[str]:
    """Read everything that a run names; the keys of `run.json` and the names of checkpoints.

    Raises:
        XdistError, ValueError, OSError, SafetensorError: something is missing or not whole.
    """
    keys, names = _listed(run), named_checkpoints(run)
    for key in keys:
        _read_object(run, key)
    for name in names:
        _read_checkpoint(run, name)
    return {*keys, *names}


def named_checkpoints(run: Store) -> list[str]:
    """Those that Ray's snapshot names; none before there is a snapshot."""
    if not run.exists(_SNAPSHOT):
        return []
    snapshot = run.read_json(_SNAPSHOT)
    results = [*snapshot["checkpoint_results"], snapshot["latest_checkpoint_result"]]
    return sorted({result["checkpoint_dir_name"] for result in results if result})


def _listed(run: Store) -> list[str]:
    return list(run.read_json(RUN)["complete"]) if run.exists(RUN) else []


def _read_object(run: Store, key: str) -> None:
    _PARSERS.get(Path(key).suffix, bytes)(run.read(key))


def _read_checkpoint(run: Store, name: str) -> None:
    """Retention may remove a checkpoint after the snapshot was read, but only once no snapshot names it.

    Raises:
        ValueError: it is not what its digest says, or is named and not there.
    """
    folder = f"{CHECKPOINTS}/{name}"
    try:
        expected = run.read_json(f"{folder}/digest.json")
        found = {file: _digest(run.read(f"{folder}/{file}")) for file in _CHECKPOINT_FILES}
    except MissingObjectError as error:
        if name in named_checkpoints(run):
            raise ValueError(f"named by the snapshot, but: {error}") from error
        return
    if found != expected:
        raise ValueError(f"files are {found}, the digest says {expected}")


def _digest(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
