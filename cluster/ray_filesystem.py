"""A store as a pyarrow filesystem, for Ray: atomic writes and retries are the store's.

Knows paths (those below the store's own), nothing of what Ray keeps there.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from cluster.errors import MissingObjectError
from cluster.store import ObjectInfo, Store, Writer

__all__ = ["build_filesystem"]


def build_filesystem(store: Store) -> tuple[PyFileSystem, str]:
    """(filesystem, path of the store on it); the path of `s3://BUCKET/PREFIX` is `BUCKET/PREFIX`."""
    handler = _StoreHandler(store)
    return PyFileSystem(handler), handler.root


class _StoreHandler(FileSystemHandler):  # type: ignore[misc]
    """What Arrow asks of a filesystem, answered by a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.root = store.uri.removeprefix("s3://")

    def __reduce__(self) -> tuple[Any, ...]:
        return _StoreHandler, (self._store,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StoreHandler) and self._store.uri == other._store.uri

    def __hash__(self) -> int:
        return hash(self._store.uri)

    def get_type_name(self) -> str:
        return "xdist-store"

    def normalize_path(self, path: str) -> str:
        return path.rstrip("/")

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._file_info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        found = list(self._below(selector.base_dir.rstrip("/"), selector.recursive))
        if not found and not selector.allow_not_found and self._file_info(selector.base_dir).type == FileType.NotFound:
            raise FileNotFoundError(selector.base_dir)
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        self._store.make_folder(self._key(path))

    def delete_dir(self, path: str) -> None:
        self._store.delete_tree(self._key(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._store.delete_tree(self._key(path))
        self._store.make_folder(self._key(path))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole store is not deleted through Ray")

    def delete_file(self, path: str) -> None:
        self._store.delete(self._key(path))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        self._store.write(self._key(dest), self._read(src))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        try:
            return pa.PythonFile(self._store.open_reader(self._key(path)), mode="r")
        except MissingObjectError as error:
            raise FileNotFoundError(str(error)) from error

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Output(self._store.open_writer(self._key(path))), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("objects are replaced whole, never appended to")

    def _key(self, path: str) -> str:
        """Where a path lies in the store.

        Raises:
            ValueError: it does not lie there.
        """
        path = path.rstrip("/")
        if path != self.root and not path.startswith(f"{self.root}/"):
            raise ValueError(f"{path!r} does not lie in {self.root!r}")
        return path[len(self.root) + 1 :]

    def _read(self, path: str) -> bytes:
        try:
            return self._store.read(self._key(path))
        except MissingObjectError as error:
            raise FileNotFoundError(str(error)) from error

    def _file_info(self, path: str) -> FileInfo:
        key = self._key(path)
        found = self._store.info(key) if key else None
        if found:
            return _file(path, found)
        return FileInfo(path, FileType.Directory if self._store.exists(key) else FileType.NotFound)

    def _below(self, path: str, recursive: bool) -> list[FileInfo]:
        found: list[FileInfo] = []
        for entry in self._store.entries(self._key(path)):
            below = f"{path}/{entry.name}"
            found.append(FileInfo(below, FileType.Directory) if entry.is_folder else _file(below, entry))
            if entry.is_folder and recursive:
                found.extend(self._below(below, recursive=True))
        return found


class _Output:
    """A writer as the Python file that Arrow wants; one that Arrow drops unclosed leaves nothing."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.closed = False

    def write(self, data: Any) -> int:
        try:
            return self._writer.write(data)
        except BaseException:
            self._drop()
            raise

    def flush(self) -> None:
        """Nothing appears before the end."""

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._writer.close()
            self.closed = True
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if not self.closed:
            self.closed = True
            self._writer.abort()

    def __del__(self) -> None:
        self._drop()


def _file(path: str, found: ObjectInfo) -> FileInfo:
    return FileInfo(path, FileType.File, size=found.num_bytes, mtime=found.modified_s)
