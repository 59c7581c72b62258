"""What a disk says when it fails, in the user's words. Knows paths and bytes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from cluster.errors import StoreError, StoreRefusedError

__all__ = ["failure", "readable_bytes", "reason"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {*_FULL, errno.EACCES, errno.EPERM, errno.EROFS}


def reason(error: OSError, path: Path) -> str:
    """Why something at a path could not be done; where the disk is full, how much is free there."""
    text = error.strerror or str(error)
    if error.errno not in _FULL:
        return text
    folder = next((place for place in (path, *path.parents) if place.is_dir()), path)
    # A quota may end before the disk does.
    return f"{text}; {readable_bytes(shutil.disk_usage(folder).free)} free on the disk of {os.fspath(folder)}"


def failure(error: OSError, message: str) -> StoreError:
    """The error to raise: a disk that is full or may not be written to refuses, others may recover."""
    return (StoreRefusedError if error.errno in _REFUSED else StoreError)(message)


def readable_bytes(num_bytes: int) -> str:
    """`1.50 GiB`, `12.3 MiB`."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
