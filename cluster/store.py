"""Storage behind one URI: whole objects in, whole objects out, never a half one.

The one boundary to disks and S3 for everything that other processes or people read. A write appears under its
key whole or not at all. Knows keys and bytes, nothing of what they mean. Local disks are served here, `s3://`
by `cluster/s3.py`, both to Ray by `cluster/ray_filesystem.py`; callers import from this file only.

A store is pickled as its URI. Credentials and endpoint come from the standard AWS chain of the process that
uses it (`AWS_ENDPOINT_URL`, profile, instance role) and from nowhere else.

What lies in a store may have been put there by anybody. Two guards stand here, for all who read: a key never
leads out of its store, wherever it was taken from, and what is read whole has a size limit.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from cluster import disk
from cluster.errors import InputError, MissingObjectError, StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in collections.abc from Python 3.12 on

__all__ = [
    "DOCUMENT_LIMIT_BYTES",
    "OBJECT_LIMIT_BYTES",
    "RETRY_S",
    "LocalStore",
    "ObjectInfo",
    "Store",
    "Writer",
    "check_key",
    "check_size",
    "open_parent",
    "open_store",
    "ray_filesystem",
]

RETRY_S = 120.0
"""How long a transient error of the storage (timeout, 5xx, SlowDown, no connection) is tried again, in seconds."""

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a job."""
DOCUMENT_LIMIT_BYTES = 16 << 20
"""Of a JSON document. The largest that this program writes, a `dataset.json` of 100,000 shards, has 16 MB."""

OBJECT_LIMIT_BYTES = 4 << 30
"""Of any object that is read whole into memory, where its reader gives no limit of its own."""

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
_COPY_BYTES = 16 << 20
_TEMPORARY = ".tmp-"
_NOT_IN_KEYS = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows of an object, or of a folder of objects (no size, no time)."""

    name: str
    num_bytes: int = 0
    modified_s: float = 0.0
    is_folder: bool = False


class Writer(Protocol):
    """One object on its way in: appears at `close`, never after `abort`."""

    def write(self, data: Buffer) -> int:
        """Take bytes; how many."""

    def close(self) -> None:
        """Make the object appear, whole."""

    def abort(self) -> None:
        """Leave nothing."""


class Store(ABC):
    """A folder of objects. Keys are relative paths with `/`; "" is the folder itself.

    Every method raises StoreError where the storage fails, naming the place; MissingObjectError where an object
    that is to be read is not there; InputError for a key that `check_key` refuses. Safe in threads and after a fork.
    """

    @property
    @abstractmethod
    def uri(self) -> str:
        """What a user gives to come back here."""

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether only this machine, or those with the same mounts, can reach it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.uri,)

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def locate(self, key: str = "") -> str:
        """Where a key lies, for messages and for users."""
        return f"{self.uri}/{key}" if key else self.uri

    @abstractmethod
    def child(self, key: str) -> Store:
        """The store below a key."""

    @abstractmethod
    def info(self, key: str) -> ObjectInfo | None:
        """Size and time of an object; None if there is none (a folder is no object)."""

    @abstractmethod
    def entries(self, key: str = "") -> list[ObjectInfo]:
        """Objects and folders directly under a key, by name; empty if there are none."""

    @abstractmethod
    def walk(self, key: str = "") -> Iterator[str]:
        """Keys of all objects at any depth under a key."""

    @abstractmethod
    def read(self, key: str, limit_bytes: int = OBJECT_LIMIT_BYTES) -> bytes:
        """The whole object.

        Raises:
            InputError: it is larger than the limit; nothing of it was read.
        """

    @abstractmethod
    def write(self, key: str, data: Buffer) -> None:
        """Replace the object, whole."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write the object only if the key is free; False if somebody was first.

        `data` should be like no other writer's: where an answer is lost, the bytes found tell who won.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if it is not there."""

    @abstractmethod
    def delete_tree(self, key: str) -> None:
        """Remove all objects under a key."""

    @abstractmethod
    def make_folder(self, key: str) -> None:
        """Make an empty folder where the storage has such a thing."""

    @abstractmethod
    def open_reader(self, key: str) -> BinaryIO:
        """The object as a seekable stream."""

    @abstractmethod
    def open_writer(self, key: str) -> Writer:
        """A stream that becomes the object when it is closed."""

    def refuse_links_out(self, key: str) -> None:  # noqa: B027  (objects of a bucket are no links)
        """Pass if no symbolic link leads out of the store on the way to a key.

        Raises:
            InputError: one does.
        """

    def exists(self, key: str = "") -> bool:
        """Whether an object is there, or anything below a folder key."""
        return (bool(key) and self.info(key) is not None) or bool(self.entries(key))

    def list(self, key: str = "") -> list[str]:
        """Names directly under a key, sorted; empty if there are none."""
        return [entry.name for entry in self.entries(key)]

    def read_json(self, key: str) -> Any:
        """The object as parsed JSON.

        Raises:
            InputError: it is larger than any document of this program, not JSON, or nested deeper than can be parsed.
        """
        data = self.read(key, DOCUMENT_LIMIT_BYTES)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.locate(key)} is damaged: not JSON that can be read ({error}).") from None

    def write_json(self, key: str, value: Any) -> None:
        """Replace the object with JSON text, whole."""
        self.write(key, (json.dumps(value, indent=2) + "\n").encode())

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a file, piece by piece. The caller renames it: half a file stays when this fails.

        Raises:
            OSError: the file cannot be written.
        """
        with self.open_reader(key) as source, path.open("wb") as target:
            while piece := source.read(_COPY_BYTES):
                target.write(piece)
            _flush_to_disk(target)

    def upload(self, path: Path, key: str, moved: Callable[[], None] = lambda: None) -> None:
        """Copy a file to an object, piece by piece, with a word at each; it appears whole."""
        writer = self.open_writer(key)
        try:
            with path.open("rb") as source:
                while piece := source.read(_COPY_BYTES):
                    writer.write(piece)
                    moved()
            writer.close()
        except BaseException:
            writer.abort()
            raise

    def try_out(self) -> None:
        """Write, read, list, claim and remove one small object: everything that a run will ask of the store.

        Raises:
            StoreError: what cannot be done here.
        """
        key, data = f".try-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            created = self.create(key, data)
            self.write(key, data)
            if not (created and self.read(key) == data and key in self.list()):
                raise StoreError(f"{self.locate(key)}: what was written a moment ago does not come back.")
        finally:
            with suppress(StoreError):
                self.delete(key)


class LocalStore(Store):
    """A folder on a local or mounted disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        return str(self.root)

    @property
    def is_local(self) -> bool:
        return True

    def child(self, key: str) -> LocalStore:
        return LocalStore(self.path(key))

    def path(self, key: str = "") -> Path:
        """Where a key lies on this machine."""
        return self.root / check_key(key) if key else self.root

    def refuse_links_out(self, key: str) -> None:
        path = self.path(key)
        with _mapped(path, "read"):
            end = path.resolve()
            inside = end.is_relative_to(self.root.resolve())
        if not inside:
            raise InputError(
                f"{path} is a symbolic link that leads out of its folder, to {end}. Nothing outside a folder is read "
                "on its behalf: put the file itself there."
            )

    def info(self, key: str) -> ObjectInfo | None:
        path = self.path(key)
        with _mapped(path, "read"):
            return _entry(path) if path.is_file() else None

    def exists(self, key: str = "") -> bool:
        with _mapped(self.path(key), "read"):
            return self.path(key).exists()

    def entries(self, key: str = "") -> list[ObjectInfo]:
        folder = self.path(key)
        with _mapped(folder, "list"):
            if not folder.is_dir():
                return []
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith(_TEMPORARY))
            return [entry for path in paths if (entry := _entry(path))]

    def walk(self, key: str = "") -> Iterator[str]:
        for entry in self.entries(key):
            below = f"{key}/{entry.name}" if key else entry.name
            if entry.is_folder:
                yield from self.walk(below)
            else:
                yield below

    def read(self, key: str, limit_bytes: int = OBJECT_LIMIT_BYTES) -> bytes:
        path = self.path(key)
        with _mapped(path, "read"), _opened(path) as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            check_size(str(path), num_bytes, limit_bytes)
            return stream.read(num_bytes)

    def write(self, key: str, data: Buffer) -> None:
        target = self.path(key)
        with _mapped(target, "write"), _temporary_beside(target, data) as temporary:
            os.replace(temporary, target)

    def create(self, key: str, data: bytes) -> bool:
        target = self.path(key)
        with _mapped(target, "write"), _temporary_beside(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
        return True

    def delete(self, key: str) -> None:
        with _mapped(self.path(key), "delete"):
            self.path(key).unlink(missing_ok=True)

    def delete_tree(self, key: str) -> None:
        with _mapped(self.path(key), "delete"), suppress(FileNotFoundError):
            shutil.rmtree(self.path(key))

    def make_folder(self, key: str) -> None:
        with _mapped(self.path(key), "write"):
            self.path(key).mkdir(parents=True, exist_ok=True)

    def open_reader(self, key: str) -> BinaryIO:
        with _mapped(self.path(key), "read"):
            return _opened(self.path(key))

    def open_writer(self, key: str) -> Writer:
        return _LocalWriter(self.path(key))


class _LocalWriter:
    """A temporary file beside the target, renamed at the end."""

    def __init__(self, target: Path) -> None:
        self._target = target
        with _mapped(target, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, self._name = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
        self._stream = os.fdopen(handle, "wb")

    def write(self, data: Buffer) -> int:
        with _mapped(self._target, "write"):
            return self._stream.write(data)

    def close(self) -> None:
        if self._stream.closed:
            return
        with _mapped(self._target, "write"):
            _flush_to_disk(self._stream)
            self._stream.close()
            os.chmod(self._name, 0o644)
            os.replace(self._name, self._target)

    def abort(self) -> None:
        with suppress(OSError):
            self._stream.close()
        Path(self._name).unlink(missing_ok=True)


def check_key(key: str) -> str:
    """The key itself, if it leads to a place below its store.

    Keys are taken from documents too, which anybody may have written.

    Raises:
        InputError: an absolute path, another URI, or one with `..`, backslashes or empty parts.
    """
    if not isinstance(key, str) or _NOT_IN_KEYS.search(key) or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise InputError(
            f"{str(key)[:200]!r} is no key of an object: keys are relative paths with / that stay in their folder. "
            "If you did not type it, a document in the storage names it, which this program did not write: "
            "copy the folder again from where it was made."
        )
    return key


def check_size(where: str, num_bytes: int, limit_bytes: int) -> None:
    """Pass if an object may be read whole.

    Raises:
        InputError: it is larger than the limit.
    """
    if num_bytes > limit_bytes:
        raise InputError(
            f"{where} has {disk.readable_bytes(num_bytes)}, and at most {disk.readable_bytes(limit_bytes)} of such an "
            "object are read. This program did not write it: copy it again from where it was made."
        )


def open_store(uri: str, retry_s: float = RETRY_S) -> Store:
    """The store that a URI names: a path, `file://`, or `s3://BUCKET/PREFIX`.

    Args:
        uri: where.
        retry_s: how long transient errors are tried again.

    Raises:
        InputError: a scheme that cannot be reached, an S3 URI without a bucket, or, in a job of a cluster, a path that
            starts nowhere.
    """
    match = _SCHEME.match(uri)
    scheme = match.group(1).lower() if match else "file"
    if scheme == "s3":
        from cluster.s3 import S3Store

        return S3Store(uri, retry_s)
    if scheme != "file":
        raise InputError(f"{uri!r}: {scheme}:// cannot be used. Give s3://BUCKET/PREFIX, or a path on a disk.")
    path = Path(uri.removeprefix("file://")).expanduser()
    if not path.is_absolute() and _JOB in os.environ:
        raise InputError(
            f"{uri!r} is a path that starts in the folder of this job, which is removed with it. Give "
            "s3://BUCKET/PREFIX, or an absolute path that the cluster's nodes have."
        )
    return LocalStore(path.absolute())


def open_parent(uri: str) -> tuple[Store, str]:
    """The store that a file's path or URI lies in, and the file's key there.

    Raises:
        InputError: it names a folder, or is no place that can be reached.
    """
    name = uri.rpartition("/")[2]
    if name in ("", ".", ".."):
        raise InputError(f"{uri!r} is a folder. Give a file's name too.")
    return open_store(uri.removesuffix(name) or "."), name


def ray_filesystem(uri: str) -> tuple[Any, str]:
    """(pyarrow filesystem, path on it) of a store for Ray's `storage_filesystem` and `storage_path`.

    Writes are atomic and transient errors are tried again, as everywhere here; pickled as the URI only.
    """
    from cluster.ray_filesystem import build_filesystem

    return build_filesystem(open_store(uri))


def _entry(path: Path) -> ObjectInfo | None:
    """None where the file went away since it was listed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if path.is_dir():
        return ObjectInfo(path.name, is_folder=True)
    return ObjectInfo(path.name, status.st_size, status.st_mtime)


def _opened(path: Path) -> BinaryIO:
    """For reading; a pipe would be waited for without an end, and a device read without one."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says by itself what is wrong
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


@contextmanager
def _temporary_beside(target: Path, data: Buffer) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            _flush_to_disk(stream)
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _flush_to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _mapped(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObjectError(f"{path}: cannot {action} ({error.strerror}).") from error
    except OSError as error:
        raise disk.failure(error, f"{path}: cannot {action} ({disk.reason(error, path)}).") from error
