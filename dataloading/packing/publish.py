"""A folder that appears whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import disk
from cluster.errors import InputError, StoreError
from cluster.terminal import printable

__all__ = ["published_at_end", "refuse_taken"]


def refuse_taken(out: Path) -> None:
    """Refuse a name that is taken.

    Raises:
        InputError: something is there.
    """
    if out.exists() or out.is_symlink():
        raise InputError(
            f"The output folder {printable(repr(str(out)))} exists. Nothing was written. "
            "Choose a new name, or remove it first."
        )


@contextmanager
def published_at_end(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` when the block ends well, and is removed otherwise.

    Raises:
        StoreError: the disk is full or not writable.
    """
    folder = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        yield folder
        refuse_taken(out)
        folder.rename(out)
    except OSError as error:
        raise StoreError(f"{out}: cannot write ({disk.reason(error, out)}). Nothing was left there.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
