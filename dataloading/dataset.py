"""The packed form of a dataset: what lies in its folder and how it is read back.

    dataset.json        DatasetInfo
    manifest.parquet    one row an image, ordered by (label, source); id = row number
    quarantine.parquet  each rejected file with its reason
    shards/00000.arrow  Arrow IPC, uncompressed

Owns the schemas and their version. Knows neither how a set was packed nor how it is loaded.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.store import Store, open_store

__all__ = [
    "INFO_KEY",
    "MANIFEST_KEY",
    "MANIFEST_SCHEMA",
    "QUARANTINE_KEY",
    "QUARANTINE_SCHEMA",
    "SCHEMA_VERSION",
    "SHARD_SCHEMA",
    "SPLITS",
    "Dataset",
    "DatasetInfo",
    "Shard",
    "open_dataset",
    "shard_key",
]

SCHEMA_VERSION = 1
INFO_KEY = "dataset.json"
MANIFEST_KEY = "manifest.parquet"
QUARANTINE_KEY = "quarantine.parquet"
SPLITS = ("train", "val", "test")

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("label", pa.int16(), nullable=False),
        pa.field("patient", pa.string(), nullable=False),
        pa.field("group", pa.string()),  # of patients tied by confirmed duplicates: the first of them; else null
        pa.field("given_split", pa.string()),  # train | val | test, null where the source has none
        pa.field("patient_split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # row within its shard
        pa.field("width", pa.int32(), nullable=False),  # pixels, after EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # of the file as found
        pa.field("sha256", pa.string(), nullable=False),  # of the file as found
        pa.field("phash", pa.uint64(), nullable=False),
        pa.field("has_mask", pa.bool_(), nullable=False),
    ]
)
QUARANTINE_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string())])
SHARD_SCHEMA = pa.schema(
    [("id", pa.int64()), ("label", pa.int16()), ("image", pa.large_binary()), ("mask", pa.large_binary())]
)


def shard_key(number: int) -> str:
    """Key of a shard, e.g. `shards/00003.arrow`."""
    return f"shards/{number:05d}.arrow"


@dataclass(frozen=True)
class Shard:
    """One shard file; its key is `shard_key(position in the list)`."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of `dataset.json`.

    `mean` and `std` are over all pixels of all images in [0, 1], one figure a channel. `counts` is
    images by class name. `fractions` and `seed` define the patient split and the folds.
    `fingerprint` is equal for equal input, options and seed, whatever the machine.
    """

    schema_version: int = SCHEMA_VERSION
    classes: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int]
    num_patients: int
    num_quarantined: int
    fractions: tuple[float, float, float]
    seed: int
    shards: tuple[Shard, ...]
    manifest_sha256: str
    fingerprint: str
    source: str
    audit: dict[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Images in the manifest."""
        return sum(self.counts.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards: what a node's disk must hold."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `dataset.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> DatasetInfo:
        """The reverse of `to_json`.

        Raises:
            InputError: another schema version, or fields that are not there.
        """
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{where}: dataset schema version is {version!r}, this program reads {SCHEMA_VERSION}. "
                "Pack the source images again with this version (`xdist-train pack`)."
            )
        try:
            values = {
                **values,
                "shards": tuple(Shard(**shard) for shard in values["shards"]),
                **{name: tuple(values[name]) for name in ("classes", "mean", "std", "fractions")},
            }
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: dataset.json is damaged ({error}). Pack the source images again.") from None


@dataclass(frozen=True)
class Dataset:
    """A packed dataset in a store."""

    store: Store
    info: DatasetInfo

    def read_manifest(self, columns: list[str] | None = None, data: bytes | None = None) -> pa.Table:
        """The manifest's columns (all by default), in id order.

        Args:
            data: the manifest's file, where the caller has it already.

        Raises:
            InputError: it is no table, or not of the images that dataset.json counts.
        """
        where = self.store.locate(MANIFEST_KEY)
        try:
            file = pq.ParquetFile(io.BytesIO(self.store.read(MANIFEST_KEY) if data is None else data))
            # From the end of the file, before anything is unpacked: a few bytes can stand for any number of rows.
            if file.metadata.num_rows == self.info.num_images:
                return file.read(columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{where} is damaged ({error}). Pack the source images again.") from None
        raise InputError(
            f"{where} has {file.metadata.num_rows:,} rows, but dataset.json counts {self.info.num_images:,} images. "
            "Pack the source images again."
        )

    def read_quarantine(self) -> pa.Table:
        """The rejected files, each with its reason."""
        return pq.read_table(io.BytesIO(self.store.read(QUARANTINE_KEY)))


def open_dataset(uri: str) -> Dataset:
    """The packed dataset at a URI.

    Raises:
        InputError: nothing there, or another schema version.
    """
    store = open_store(uri)
    if not store.exists(INFO_KEY):
        raise InputError(
            f"data.uri {uri!r} holds no packed dataset (no {INFO_KEY}). "
            "Make one with `xdist-train pack IMAGES --out URI` and give that URI."
        )
    for key in (INFO_KEY, MANIFEST_KEY, QUARANTINE_KEY):
        store.refuse_links_out(key)
    return Dataset(store, DatasetInfo.from_json(store.read_json(INFO_KEY), store.uri))
