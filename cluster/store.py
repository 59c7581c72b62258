"""Storage behind one URI: whole objects in, whole objects out, never a half one.

The one boundary to the disk for everything that other processes or people read. A write appears
under its key whole or not at all. Knows keys and bytes, nothing of what they mean.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import InputError, StoreError

__all__ = ["Store", "open_store"]

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")


class Store:
    """A folder of objects on a local or mounted disk.

    Keys are relative paths with `/`. Every method raises StoreError where the disk fails, naming the path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @property
    def uri(self) -> str:
        """What a user gives to come back here."""
        return str(self.root)

    def child(self, key: str) -> Store:
        """The store below a key."""
        return Store(self.root / key)

    def path(self, key: str = "") -> Path:
        """Where a key lies on this machine."""
        return self.root / key if key else self.root

    def exists(self, key: str = "") -> bool:
        """Whether an object (or, for a folder key, anything) is there."""
        return self.path(key).exists()

    def read(self, key: str) -> bytes:
        """The whole object."""
        with _mapped(self.path(key), "read"):
            return self.path(key).read_bytes()

    def read_json(self, key: str) -> Any:
        """The object as parsed JSON."""
        try:
            return json.loads(self.read(key))
        except ValueError as error:
            raise StoreError(f"{self.path(key)} is damaged: not JSON ({error}).") from None

    def write(self, key: str, data: bytes) -> None:
        """Replace the object, whole."""
        target = self.path(key)
        with _mapped(target, "write"), _temporary_beside(target, data) as temporary:
            os.replace(temporary, target)

    def write_json(self, key: str, value: Any) -> None:
        """Replace the object with JSON text, whole."""
        self.write(key, (json.dumps(value, indent=2) + "\n").encode())

    def create(self, key: str, data: bytes) -> bool:
        """Write the object only if the key is free; False if somebody was first."""
        target = self.path(key)
        with _mapped(target, "write"), _temporary_beside(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
        return True

    def list(self, key: str = "") -> list[str]:
        """Names directly under a key, sorted; empty if there are none."""
        folder = self.path(key)
        if not folder.is_dir():
            return []
        with _mapped(folder, "list"):
            return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".tmp-"))


def open_store(uri: str) -> Store:
    """The store that a URI names: a path, or `file://`.

    Raises:
        InputError: a scheme that this version cannot reach.
    """
    match = _SCHEME.match(uri)
    if match and match.group(1) != "file":
        raise InputError(f"{uri!r}: {match.group(1)}:// cannot be used. Give a path on a disk that all workers share.")
    return Store(Path(uri.removeprefix("file://")).expanduser().absolute())


@contextmanager
def _temporary_beside(target: Path, data: bytes) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _mapped(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot {action} ({error.strerror or error}).") from error
