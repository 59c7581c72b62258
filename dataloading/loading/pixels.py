"""Decode once: every picture of a data set as pixels, in one file of the node's cache that all processes there map.

    <cache>/<fingerprint>/
      pixels-1-<side>-<of>.u8     pictures of uint8 [h, w, C], one after another as they lie in the shards
      pixels-1-<side>-<of>.npy    where each is: `PICTURE` by id, and one more that begins where the file ends; there
                                  last, so what it leads to is whole

A picture is kept at the scale 1/r at which the whole of it is decoded for `side` pixels, r a power of 2: its size is
bounded by the side, not by the source, and a pixel covers exactly r x r of the source, as in a reduced decode. `of` is
of dataset.json. The caller holds the folder's lock. Files are replaced whole; they can be deleted at any time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.disk import readable_bytes
from cluster.errors import InputError
from dataloading.dataset import Dataset, shard_key
from dataloading.loading.executor import Decoded, Encoded, Pictures, UndecodableError, is_jpeg
from dataloading.loading.node_cache import PIXELS, make_room
from dataloading.loading.opencv import decode
from dataloading.loading.shards import REPACK, Progress, column_bytes, read_batches, replace_file, temporary_in

__all__ = ["PICTURE", "Pixels", "bring_pixels", "missing_pixel_bytes"]

Integers = npt.NDArray[np.int64]

PICTURE = np.dtype([("offset", "<i8"), ("width", "<i4"), ("height", "<i4"), ("reduction", "<i4")])
"""One picture: its first byte in the file, and its size in pixels as it is kept, at 1/`reduction`."""

_VERSION = 1
_LIBRARY_REDUCTION = 8
"""libjpeg's own, at most; what is more is averaged from that."""
_STRETCH = 256
"""Pictures of one task."""


class Pixels:
    """The decoded pictures of a data set, mapped."""

    def __init__(self, index: npt.NDArray[Any], data: Path, channels: int) -> None:
        self._index = index
        self.path = data
        self.data: Encoded = np.asarray(np.memmap(data, np.uint8, mode="r"))  # slices of a memmap cost more
        """All pictures: uint8 [bytes]."""
        self._channels = channels

    def places(self, ids: Integers) -> npt.NDArray[Any]:
        """Where pictures lie in `data`, by id: `PICTURE` [n]."""
        return self._index[ids]

    def pictures(self, places: npt.NDArray[Any]) -> Pictures:
        """Pictures by their places, as views that cannot be written to: uint8 [h, w, C] each."""
        return Pictures(places, self._views)

    def _views(self, places: npt.NDArray[Any]) -> Iterator[Decoded]:
        data, channels = self.data, self._channels
        for offset, width, height, _ in places.tolist():
            yield data[offset : offset + height * width * channels].reshape(height, width, channels)


def missing_pixel_bytes(
    dataset: Dataset, read_manifest: Callable[[], pa.Table], folder: Path, *, side: float, name: str
) -> int:
    """How much `bring_pixels` would write, which has the same arguments."""
    if _open_index(*_files(folder, side, name)) is not None:
        return 0
    index = _plan(read_manifest(), side, dataset.info.channels)
    return int(index["offset"][-1]) + index.nbytes


def bring_pixels(
    dataset: Dataset,
    read_manifest: Callable[[], pa.Table],
    shards: Sequence[Path],
    folder: Path,
    *,
    side: float,
    name: str,
    limit_bytes: int = 0,
    progress: Progress | None = None,
) -> Pixels:
    """The decoded pictures of a data set, after whoever comes first on a node has decoded them, on all its CPUs.

    Args:
        read_manifest: gives the data set's, a row an id; only asked where there is something to decode.
        shards: where they lie on this node.
        folder: the data set's folder in the cache, locked.
        side: pixels that are wanted of a picture's short side.
        name: of the files; two sets of the same fingerprint have two.
        limit_bytes: size that the cache may have, 0 for what the disk has.
        progress: called as pictures are decoded.

    Raises:
        InputError: a picture cannot be decoded.
        StoreError: there is no room.
    """
    index_path, data_path = _files(folder, side, name)
    index = _open_index(index_path, data_path)
    if index is None:
        manifest = read_manifest()
        index = _plan(manifest, side, dataset.info.channels)
        make_room(folder.parent, folder, int(index["offset"][-1]) + index.nbytes, limit_bytes, PIXELS)
        _write(dataset, manifest, shards, index, data_path, progress)
        buffer = io.BytesIO()
        np.save(buffer, index)
        replace_file(index_path, buffer.getvalue())
        index = np.asarray(np.load(index_path, mmap_mode="r"))
    return Pixels(index, data_path, dataset.info.channels)


def _files(folder: Path, side: float, name: str) -> tuple[Path, Path]:
    """Index and data."""
    stem = folder / f"pixels-{_VERSION}-{side:g}-{name}"
    return stem.with_name(f"{stem.name}.npy"), stem.with_name(f"{stem.name}.u8")


def _open_index(index_path: Path, data_path: Path) -> npt.NDArray[Any] | None:
    """The mapped index; None where it, or what it leads to, is not there or has another size."""
    try:
        index = np.asarray(np.load(index_path, mmap_mode="r"))
        size = data_path.stat().st_size
    except (OSError, ValueError, EOFError):
        return None
    return index if index.dtype == PICTURE and int(index["offset"][-1]) == size else None


def _plan(manifest: pa.Table, side: float, channels: int) -> npt.NDArray[Any]:
    """The index: places in the order of the shards."""
    columns = {name: manifest.column(name).to_numpy().astype(np.int64) for name in ("shard", "row", "width", "height")}
    order = np.lexsort((columns["row"], columns["shard"]))
    short = np.minimum(columns["width"], columns["height"])
    reductions = 2 ** np.floor(np.log2(np.maximum(short / side, 1))).astype(np.int64)
    index = np.zeros(len(order) + 1, PICTURE)
    pictures = index[:-1]
    pictures["reduction"] = reductions
    pictures["width"], pictures["height"] = -(-columns["width"] // reductions), -(-columns["height"] // reductions)
    ends = np.cumsum((pictures["width"].astype(np.int64) * pictures["height"] * channels)[order])
    pictures["offset"][order[1:]] = ends[:-1]
    index["offset"][-1] = ends[-1]
    return index


def _write(
    dataset: Dataset,
    manifest: pa.Table,
    shards: Sequence[Path],
    index: npt.NDArray[Any],
    path: Path,
    progress: Progress | None,
) -> None:
    """Decode everything into a file of its own, which takes its name when it is whole and on the disk."""
    num_bytes, count = int(index["offset"][-1]), len(index) - 1
    what = f"pictures decoded once, into {readable_bytes(num_bytes)} of {path.parent}"
    with temporary_in(path.parent) as temporary:
        with temporary.open("w+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, num_bytes)  # a full disk is met here, not in a write to a map
        data = np.memmap(temporary, np.uint8, mode="r+")
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            tasks = [
                pool.submit(_decode_stretch, stretch, index, data, dataset.info.channels)
                for stretch in _stretches(manifest, shards)
            ]
            try:
                for number, task in enumerate(tasks):
                    if progress:
                        progress(what, min(number * _STRETCH, count), count)
                    task.result()
            except _BrokenPictureError as error:
                raise InputError(_describe(dataset, manifest, error)) from None
            finally:
                for task in tasks:
                    task.cancel()
        data.flush()
        os.replace(temporary, path)


class _BrokenPictureError(Exception):
    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, reason)
        self.number, self.reason = number, reason


def _describe(dataset: Dataset, manifest: pa.Table, error: _BrokenPictureError) -> str:
    shard = manifest.column("shard")[error.number].as_py()
    return (
        f"{dataset.store.uri}: image id {error.number} ({shard_key(shard)}) cannot be decoded: {error.reason}. {REPACK}"
    )


class _Stretch(NamedTuple):
    """Pictures that one task decodes: ids, and their places among the offsets and bytes of one record batch."""

    ids: Integers
    places: Integers
    offsets: Integers
    values: Encoded


def _stretches(manifest: pa.Table, shards: Sequence[Path]) -> Iterator[_Stretch]:
    """All pictures in the order of the shards; as views, for there may be many."""
    columns = {name: manifest.column(name).to_numpy().astype(np.int64) for name in ("shard", "row")}
    order = np.lexsort((columns["row"], columns["shard"]))
    starts = np.searchsorted(columns["shard"][order], np.arange(len(shards) + 1))
    for number, path in enumerate(shards):
        ids = order[starts[number] : starts[number + 1]]
        rows = columns["row"][ids]
        batches = read_batches(path)
        first_rows = accumulate((batch.num_rows for batch in batches), initial=0)
        for first_row, batch in zip(first_rows, batches, strict=False):
            offsets, values = column_bytes(batch.column("image"))
            mine = ids[(rows >= first_row) & (rows < first_row + batch.num_rows)]
            places = columns["row"][mine] - first_row
            for start in range(0, len(mine), _STRETCH):
                stop = start + _STRETCH
                yield _Stretch(mine[start:stop], places[start:stop], offsets, values)


def _decode_stretch(stretch: _Stretch, index: npt.NDArray[Any], data: npt.NDArray[np.uint8], channels: int) -> None:
    ids, places, offsets, values = stretch
    for number, at in zip(ids.tolist(), places.tolist(), strict=True):
        offset, width, height, reduction = index[number].tolist()
        picture = values[offsets[at] : offsets[at + 1]]
        place = data[offset : offset + width * height * channels].reshape(height, width, channels)
        try:
            place[...] = _decode_at(picture, channels, reduction).reshape(place.shape)
        except (UndecodableError, ValueError) as error:
            reason = error.reason if isinstance(error, UndecodableError) else "it has another size than the manifest's"
            raise _BrokenPictureError(number, reason) from None


def _decode_at(encoded: Encoded, channels: int, reduction: int) -> npt.NDArray[np.uint8]:
    """A picture at 1/reduction, gray or RGB; a last pixel that reaches beyond an edge repeats the edge."""
    step = min(reduction, _LIBRARY_REDUCTION) if is_jpeg(encoded) else 1
    picture: Any = decode(encoded, channels, step, 0)
    rest = reduction // step
    if rest > 1:
        height, width = picture.shape[:2]
        picture = cv2.copyMakeBorder(picture, 0, -height % rest, 0, -width % rest, cv2.BORDER_REPLICATE)
        size = (picture.shape[1] // rest, picture.shape[0] // rest)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if channels == 3 else picture)
