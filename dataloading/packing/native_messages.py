"""What C libraries say about a file.

libjpeg and libpng decode damaged data, fill the rest with gray and tell nobody but the standard error stream of
the process. Owns the reading of that stream, nothing of what the messages mean.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["native_messages"]

_CHUNK_BYTES = 65_536


@contextmanager
def native_messages() -> Iterator[list[str]]:
    """Collects the lines that are written to file descriptor 2 inside the block; the list is filled at its end.

    Of the whole process, so only for a worker with one thread.
    """
    lines: list[str] = []
    sys.stderr.flush()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # a flood of messages is cut, never waited for
    saved = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield lines
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        lines.extend(_read_all(reader).decode("utf-8", "replace").splitlines())


def _read_all(reader: int) -> bytes:
    with os.fdopen(reader, "rb", buffering=0) as stream:
        return stream.read(_CHUNK_BYTES) or b""
