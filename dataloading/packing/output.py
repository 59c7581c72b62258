"""Where a packed dataset grows until it is whole: a hidden folder on a disk, or objects that no dataset.json names.

Owns refusal of a taken place and what is left after a failure: nothing.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cluster.errors import InputError, StoreError
from cluster.store import LocalStore, Store
from cluster.terminal import printable
from dataloading.packing.publish import published_at_end, refuse_taken

__all__ = ["Output", "open_output", "refuse_taken_store"]

_CLAIM = ".packing"


@dataclass(frozen=True)
class Output:
    """A dataset in the making: its store, and a folder on this machine for files that are not part of it."""

    store: Store
    scratch: Path


def refuse_taken_store(out: Store) -> None:
    """Refuse a place where anything is.

    Raises:
        InputError: a file, a folder or an object is there.
    """
    if isinstance(out, LocalStore):
        refuse_taken(out.path())
    elif names := list(islice(out.walk(), 4)):
        raise InputError(
            f"{printable(repr(out.uri))} is not empty: it holds {printable(', '.join(names[:3]))}. Nothing was "
            f"written. Choose a new name, or remove it first ({_CLAIM} is left by one that runs or was killed)."
        )


@contextmanager
def open_output(out: Store) -> Iterator[Output]:
    """A place for a dataset; what was written stays only if the block ends well.

    Raises:
        InputError: the place is taken.
        StoreError: the storage fails or is full.
    """
    if isinstance(out, LocalStore):
        with published_at_end(out.path()) as folder:
            yield Output(LocalStore(folder), folder)
        return
    refuse_taken_store(out)
    _claim(out)
    try:
        with tempfile.TemporaryDirectory(prefix="xdist-pack-") as scratch:
            yield Output(out, Path(scratch))
    except OSError as error:
        _remove(out)
        raise StoreError(f"{tempfile.gettempdir()}: cannot write ({error.strerror or error}).") from error
    except BaseException:
        _remove(out)
        raise
    out.delete(_CLAIM)


def _claim(out: Store) -> None:
    """Two that pack into one place would mix their shards; the first keeps it."""
    text = f"host {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {time.time_ns()}\n"
    if not out.create(_CLAIM, text.encode()):
        raise InputError(f"{printable(repr(out.uri))}: another pack has begun here a moment ago. Choose a new name.")
    if list(islice(out.walk(), 2)) != [_CLAIM]:  # one that ended between the look and the claim
        out.delete(_CLAIM)
        refuse_taken_store(out)


def _remove(out: Store) -> None:
    """What was begun; dataset.json is written last, so that without it nothing looks finished."""
    with suppress(StoreError):
        out.delete_tree("")
