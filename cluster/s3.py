"""`s3://` behind the Store's contract: requests through s3fs, retried while a failure is transient.

Owns the connection of this process, the retries and the conditional write. Credentials, endpoint and region come
from the standard AWS chain only. Callers use `cluster.store.open_store`.
"""

from __future__ import annotations

import io
import logging
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import s3fs
from fsspec.asyn import sync

from cluster.errors import InputError, MissingObjectError, StoreError
from cluster.s3_errors import CONFLICT, FAILURES, NO_UPLOAD, NOT_IMPLEMENTED, PRECONDITION, cause_of
from cluster.store import OBJECT_LIMIT_BYTES, ObjectInfo, Store, Writer, check_key, check_size, open_store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["S3Store"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.IGNORECASE)
_PART_BYTES = 16 << 20
"""Of one part of an upload and of one request for bytes."""
_BUFFER_BYTES = 1 << 20
"""Read ahead where somebody asks for less."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_SETTLE_S = 1.0
"""Without conditional writes: time for a rival's write to become visible."""
_CONFIG = {
    "connect_timeout": 5,
    "read_timeout": 20,
    "max_pool_connections": 32,
    "retries": {"total_max_attempts": 1},  # tried again here, where it is counted and said
    "request_checksum_calculation": "when_required",  # many S3-compatible servers do not take the newer default
    "response_checksum_validation": "when_required",
}


class S3Store(Store):
    """Objects under a prefix of a bucket."""

    def __init__(self, uri: str, retry_s: float) -> None:
        match = _URI.fullmatch(uri.rstrip("/"))
        if not match:
            raise InputError(f"{uri!r} is no S3 URI. Give s3://BUCKET/PREFIX; keys and endpoint go in the environment.")
        self._bucket = match.group(1)
        self._prefix = "/".join(part for part in (match.group(2) or "").split("/") if part)
        self._retry_s = retry_s

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def is_local(self) -> bool:
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.uri, self._retry_s)

    def child(self, key: str) -> S3Store:
        return S3Store(self.locate(check_key(key) if key else key), self._retry_s)

    def info(self, key: str) -> ObjectInfo | None:
        head = self._head(key)
        return _info(key, head["ContentLength"], head["LastModified"]) if head else None

    def exists(self, key: str = "") -> bool:
        if key and self._head(key) is not None:
            return True
        page = self._call("list_objects_v2", "list", key, Prefix=self._folder(key), MaxKeys=1)
        return bool(page.get("Contents"))

    def entries(self, key: str = "") -> list[ObjectInfo]:
        folder = self._folder(key)
        found: list[ObjectInfo] = []
        for page in self._pages(key, Delimiter="/"):
            # Some programs mark a folder by an empty object.
            objects = (item for item in page.get("Contents", ()) if item["Key"] != folder)
            found.extend(_info(item["Key"], item["Size"], item["LastModified"]) for item in objects)
            names = (item["Prefix"].rstrip("/").rpartition("/")[2] for item in page.get("CommonPrefixes", ()))
            found.extend(ObjectInfo(name, is_folder=True) for name in names)
        return sorted(found, key=lambda entry: entry.name)

    def walk(self, key: str = "") -> Iterator[str]:
        start = len(f"{self._prefix}/") if self._prefix else 0
        for page in self._pages(key):
            yield from (item["Key"][start:] for item in page.get("Contents", ()) if not item["Key"].endswith("/"))

    def read(self, key: str, limit_bytes: int = OBJECT_LIMIT_BYTES) -> bytes:
        return self._get(key, limit_bytes=limit_bytes)

    def write(self, key: str, data: Buffer) -> None:
        if memoryview(data).nbytes <= _PART_BYTES:
            self._call("put_object", "write", key, Key=self._key(key), Body=bytes(data))
            return
        writer = self.open_writer(key)
        try:
            writer.write(data)
            writer.close()
        except BaseException:
            writer.abort()
            raise

    def create(self, key: str, data: bytes) -> bool:
        check_key(key)
        if not self._honours_conditions():
            return self._create_without_conditions(key, data)
        return self._put_new(key, data)

    def delete(self, key: str) -> None:
        self._call("delete_object", "delete", key, Key=self._key(key))

    def delete_tree(self, key: str) -> None:
        # Not by `_key`: what others have put there under odd names goes too.
        names = [self._joined(below) for below in self.walk(key)]
        # Marks of folders go too: some servers make and list them by themselves, and would keep them.
        folders = {parent for name in names for parent in _parents(name) if parent.startswith(self._folder(key))}
        keys = names + sorted(folders, key=len, reverse=True)
        for first in range(0, len(keys), 1000):
            objects = [{"Key": name} for name in keys[first : first + 1000]]
            answer = self._call("delete_objects", "delete", key, Delete={"Objects": objects, "Quiet": True})
            if answer.get("Errors"):
                wrong = answer["Errors"][0]
                raise StoreError(f"{self.locate(key)}: cannot delete {wrong.get('Key')} ({wrong.get('Code')}).")

    def make_folder(self, key: str) -> None:
        """Nothing: a folder is there when something is in it."""

    def open_reader(self, key: str) -> BinaryIO:
        head = self._head(key)
        if head is None:
            raise MissingObjectError(f"{self.locate(key)}: cannot read: there is no such object.")
        raw = _Reader(lambda first, last: self._get(key, first, last, head["ETag"]), head["ContentLength"])
        return cast(BinaryIO, io.BufferedReader(raw, _BUFFER_BYTES))

    def open_writer(self, key: str) -> Writer:
        return _Writer(self, key)

    # Requests -----------------------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        return self._joined(check_key(key) if key else key)

    def _joined(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key) if part)

    def _folder(self, key: str) -> str:
        path = self._key(key)
        return f"{path}/" if path else ""

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return self._call("head_object", "read", key, Key=self._key(key))
        except MissingObjectError:
            return None

    def _pages(self, key: str, **options: Any) -> Iterator[dict[str, Any]]:
        following: dict[str, Any] = {}
        while True:
            page = self._call("list_objects_v2", "list", key, Prefix=self._folder(key), **options, **following)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {"ContinuationToken": page["NextContinuationToken"]}

    def _get(
        self,
        key: str,
        first: int = 0,
        last: int | None = None,
        etag: str | None = None,
        limit_bytes: int = OBJECT_LIMIT_BYTES,
    ) -> bytes:
        """Bytes first..last of an object, both included; the whole object by default, if it is within the limit."""
        options = {"Bucket": self._bucket, "Key": self._key(key)}
        if last is not None:
            options["Range"] = f"bytes={first}-{last}"
        if etag is not None:
            options["IfMatch"] = etag

        async def get(connection: Any) -> bytes:
            answer = await connection._call_s3("get_object", **options)
            async with answer["Body"] as body:
                check_size(self.locate(key), answer["ContentLength"], limit_bytes)
                data = cast(bytes, await body.read())
            if len(data) != answer["ContentLength"]:
                raise ConnectionError(f"{len(data)} of {answer['ContentLength']} bytes came")
            return data

        return self._retried("read", key, lambda connection: cast(bytes, sync(connection.loop, get, connection)))

    def _call(self, method: str, action: str, key: str, **options: Any) -> dict[str, Any]:
        call: Callable[[Any], dict[str, Any]] = lambda connection: connection.call_s3(  # noqa: E731
            method, Bucket=self._bucket, **options
        )
        return self._retried(action, key, call)

    def _retried(self, action: str, key: str, call: Callable[[Any], T]) -> T:
        """The answer, or the error in the user's words, after trying again while it may help."""
        started_s, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            connection = _connection()
            try:
                return call(connection)
            except FAILURES as error:
                cause = cause_of(error)
                if cause.is_bare:  # the answer to a HEAD has no text; a list is refused for the same reason, in words
                    self._call("list_objects_v2", action, key, Prefix=self._folder(""), MaxKeys=1)
                waited_s = time.monotonic() - started_s
                if not cause.transient or waited_s + wait_s > self._retry_s:
                    where = self.locate(key)
                    raise cause.error(
                        where, action, bucket=self._bucket, endpoint=_endpoint(), waited_s=waited_s
                    ) from error
            if wait_s == _FIRST_WAIT_S * 4:  # short hiccups go unmentioned
                logger.warning(
                    "%s: the storage does not answer (%s); trying for %.0f s.", self.uri, cause.code, self._retry_s
                )
            time.sleep(wait_s * random.uniform(0.75, 1.25))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    # Conditional write --------------------------------------------------------------------------------

    def _put_new(self, key: str, data: bytes) -> bool:
        """Whether the object is ours; a lost answer is settled by what is found."""
        try:
            self._call("put_object", "write", key, Key=self._key(key), Body=data, IfNoneMatch="*")
        except StoreError as error:
            if cause_of(error).code not in PRECONDITION | CONFLICT:
                raise
            return self._is_ours(key, data)
        return True

    def _is_ours(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except MissingObjectError:  # somebody has removed it since
            return False

    def _create_without_conditions(self, key: str, data: bytes) -> bool:
        if self._head(key) is not None:
            return False
        self.write(key, data)
        time.sleep(_SETTLE_S)
        return self._is_ours(key, data)

    def _honours_conditions(self) -> bool:
        """Whether the server refuses a second conditional write to one key; tried once a process and bucket."""
        place = (_endpoint(), self._bucket)
        with _trying:
            if place not in _honours:
                _honours[place] = self._try_conditions()
                if not _honours[place]:
                    logger.warning(
                        "%s: this storage does not honour conditional writes (If-None-Match). Two starts of one "
                        "run name within the same second may both believe that it is theirs.",
                        self.uri,
                    )
            return _honours[place]

    def _try_conditions(self) -> bool:
        key = f".try-{uuid.uuid4().hex}"
        options = {"Key": self._key(key), "IfNoneMatch": "*"}
        try:
            self._call("put_object", "write", key, Body=b"first", **options)
            self._call("put_object", "write", key, Body=b"second", **options)
        except StoreError as error:
            code = cause_of(error).code
            if code not in PRECONDITION | NOT_IMPLEMENTED:
                raise
            return code in PRECONDITION
        finally:
            with suppress(StoreError):
                self.delete(key)
        return False


class _Writer:
    """Parts of one object; a small object goes in one piece. Nothing appears before `close`.

    Pieces of just a part's size, as `Store.upload` writes them, go out as they came: copies of that size would hold
    up every other thread of a process that trains.
    """

    def __init__(self, store: S3Store, key: str) -> None:
        self._store, self._key = store, key
        self._pieces: list[bytes] = []
        self._held_bytes = self._num_bytes = 0
        self._upload = ""
        self._parts: list[dict[str, Any]] = []
        self._done = False

    def write(self, data: Buffer) -> int:
        piece = data if isinstance(data, bytes) else bytes(data)
        if self._held_bytes + len(piece) > _PART_BYTES:
            self._send_full_parts(piece)
        else:
            self._pieces.append(piece)
            self._held_bytes += len(piece)
        self._num_bytes += len(piece)
        return len(piece)

    def close(self) -> None:
        if self._done:
            return
        if not self._upload:
            self._store.write(self._key, self._held())
        else:
            self._send(self._held())
            self._complete()
        self._done = True

    def _send_full_parts(self, piece: bytes) -> None:
        """Send what fills whole parts and keep the rest, which is never nothing."""
        if self._held_bytes == _PART_BYTES and len(piece) <= _PART_BYTES:
            self._send(self._held())
            rest = piece
        else:
            rest = b"".join([*self._pieces, piece])
            start = 0
            while len(rest) - start > _PART_BYTES:
                self._send(rest[start : start + _PART_BYTES])
                start += _PART_BYTES
            rest = rest[start:]
        self._pieces, self._held_bytes = [rest], len(rest)

    def _held(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def abort(self) -> None:
        if self._upload and not self._done:
            with suppress(StoreError):
                self._call("abort_multipart_upload", UploadId=self._upload)
        self._done = True

    def _complete(self) -> None:
        try:
            self._call("complete_multipart_upload", UploadId=self._upload, MultipartUpload={"Parts": self._parts})
        except StoreError as error:
            # Tried again after a lost answer, a finished upload is one that the server no longer knows.
            found = self._store.info(self._key) if cause_of(error).code in NO_UPLOAD else None
            if found is None or found.num_bytes != self._num_bytes:
                raise

    def _send(self, data: bytes) -> None:
        if not self._upload:
            self._upload = self._call("create_multipart_upload")["UploadId"]
        number = len(self._parts) + 1
        answer = self._call("upload_part", UploadId=self._upload, PartNumber=number, Body=data)
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})

    def _call(self, method: str, **options: Any) -> dict[str, Any]:
        return self._store._call(method, "write", self._key, Key=self._store._key(self._key), **options)


class _Reader(io.RawIOBase):
    """Bytes of one version of an object, asked for by range, so that each request can be repeated."""

    def __init__(self, get: Callable[[int, int], bytes], num_bytes: int) -> None:
        self._get, self._num_bytes, self._position = get, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._num_bytes - self._position, _PART_BYTES)
        if count <= 0:
            return 0
        buffer[:count] = self._get(self._position, self._position + count - 1)
        self._position += count
        return count


def _parents(key: str) -> Iterator[str]:
    """`a/`, `a/b/` for `a/b/c`."""
    parts = key.split("/")
    yield from ("/".join(parts[:count]) + "/" for count in range(1, len(parts)))


def _endpoint() -> str:
    """For messages: where requests go."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def _info(key: str, num_bytes: int, modified: Any) -> ObjectInfo:
    return ObjectInfo(key.rpartition("/")[2], num_bytes, modified.timestamp())


# The connection of this process ---------------------------------------------------------------------------

_guard, _trying = threading.Lock(), threading.Lock()
_connections: dict[int, Any] = {}
_honours: dict[tuple[str, str], bool] = {}


def _connection() -> Any:
    """One client for all threads of this process; another where the AWS settings of the environment changed."""
    settings = hash(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))
    with _guard:
        if settings not in _connections:
            _connections[settings] = _connect()
        return _connections[settings]


def _connect() -> Any:
    # s3fs stores nothing between calls here: no listings, no instances shared with other users of s3fs.
    connection = s3fs.S3FileSystem(config_kwargs=_CONFIG, use_listings_cache=False, skip_instance_cache=True)
    connection.retries = 1
    return connection


def _forget() -> None:
    """A forked process makes its own connections: event loop and sockets belong to its parent, also to close."""
    global _guard, _trying
    _guard, _trying = threading.Lock(), threading.Lock()
    _of_parents.append(dict(_connections))
    _connections.clear()


_of_parents: list[dict[int, Any]] = []
os.register_at_fork(after_in_child=_forget)
