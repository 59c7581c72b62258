"""A folder of images becomes a packed dataset: scan, verify, shard, compare, split, audit, publish.

Owns the order of the steps and what is written. What is readable, who is a patient, what is a duplicate and how
splits are drawn stands in the files beside it. Knows nothing of how a set is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.config import digest
from cluster.errors import InputError
from cluster.store import LocalStore, Store
from cluster.terminal import printable
from dataloading.config import PackConfig
from dataloading.dataset import (
    INFO_KEY,
    MANIFEST_KEY,
    MANIFEST_SCHEMA,
    QUARANTINE_KEY,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    SPLITS,
    DatasetInfo,
    Shard,
)
from dataloading.packing.audit import Gathered, build_audit
from dataloading.packing.duplicates import Duplicates, first_of_each, join_duplicates
from dataloading.packing.entries import Entry
from dataloading.packing.examine import Examined, Task, examine_files
from dataloading.packing.layouts import LAYOUTS
from dataloading.packing.likeness import THUMBNAIL_PX, find_near_duplicates
from dataloading.packing.masks import MaskFolder, find_masks
from dataloading.packing.output import Output, open_output, refuse_taken_store
from dataloading.packing.patients import PatientRule, parse_patient_rule
from dataloading.packing.pixel_sums import PixelSums
from dataloading.packing.pool import map_in_order, usable_cores
from dataloading.packing.rejection import Rejected
from dataloading.packing.scan import ImageFile, Scan, check_classes, scan_source
from dataloading.packing.shards import ShardWriter
from dataloading.splits import assign_splits, join_patients

__all__ = ["PackResult", "Progress", "run_pack"]

Progress = Callable[[str, int, int], None]
"""Called with (what is counted, done, total)."""

_CHUNK_FILES = 16
_CHUNK_BYTES = 8 << 20
_THUMBNAILS = ".thumbnails"
# Where an image lies in shards is part of the fingerprint, since an index by it is; the hash is not: it is made in
# floating point, which differs between machines, and sha256 says more.
_FINGERPRINT_COLUMNS = [name for name in MANIFEST_SCHEMA.names if name != "phash"]


@dataclass(frozen=True)
class PackResult:
    """What was packed and what was not."""

    info: DatasetInfo
    quarantined: tuple[Rejected, ...]
    seconds: float

    def lines(self) -> Iterator[str]:
        """A summary to print, names escaped."""
        info, audit = self.info, self.info.audit
        classes = ", ".join(f"{name} {count:,}" for name, count in info.counts.items())
        splits = ", ".join(f"{split} {sum(held.values()):,}" for split, held in audit["patient_split_counts"].items())
        rules = ", ".join(f"{rule} {count:,}" for rule, count in audit["patients"]["found_by"].items())
        yield printable(f"{info.num_images:,} images of {info.num_patients:,} patients: {classes}.")
        yield f"Layout: {audit['layout']}. Patients found by: {rules}. Split by patient: {splits}."
        yield (
            f"{len(info.shards)} shards, {info.num_bytes / 2**20:,.1f} MiB, {'gray' if info.channels == 1 else 'RGB'}, "
            f"fingerprint {info.fingerprint[:12]}, {self.seconds:.1f} s."
        )
        for item in self.quarantined[:10]:
            yield printable(f"Quarantined: {item.source}: {item.reason}")
        for warning in audit["warnings"]:
            yield printable(f"Warning: {warning}")


def run_pack(
    source: Path,
    out: Store,
    config: PackConfig,
    *,
    csv: Path | None = None,
    masks: Path | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """Pack the images of a folder. The dataset appears under `out` whole, at the end, or not at all.

    Args:
        source: folder of images: train|val|test/CLASS, CLASS folders, a published layout, or whatever `csv` lists.
        out: where the dataset goes; must not exist.
        config: the `pack` section.
        csv: `path,label[,patient][,split]`, paths relative to `source`.
        masks: folder of lesion masks; `masks` in the source by default.
        progress: called as work proceeds.

    Raises:
        InputError: what was given cannot be packed; nothing was written.
        StoreError: the disk is full or not writable.
        RunFailedError: a worker was killed.
    """
    started_s = time.monotonic()
    show = progress or (lambda what, done, total: None)
    refuse_taken_store(out)
    parse_patient_rule(config.patient)  # a wrong one is told before a large folder is walked
    scan = scan_source(source, csv, masks, layout=config.layout)
    if isinstance(out, LocalStore):
        _refuse_inside(out.path(), scan.root)
    rule = parse_patient_rule(config.patient, LAYOUTS[scan.layout].patient if scan.layout in LAYOUTS else "")
    rule.check_taken(_count_rules(scan.images, rule))
    mask_folder = find_masks(scan, masks)
    with open_output(out) as output:
        result = _pack(_Job(scan, rule, mask_folder, output, config, show))
    return dataclasses.replace(result, seconds=time.monotonic() - started_s)


@dataclass(frozen=True)
class _Job:
    scan: Scan
    rule: PatientRule
    masks: MaskFolder
    output: Output
    config: PackConfig
    show: Progress


@dataclass
class _Verified:
    """What the pass over the files leaves, beside the shards."""

    entries: list[Entry]
    rejected: list[Rejected]
    shards: tuple[Shard, ...]
    gray: PixelSums
    colour: PixelSums


def _pack(job: _Job) -> PackResult:
    with _thumbnail_file(job.output.scratch / _THUMBNAILS) as thumbnails:
        verified = _verify(job, thumbnails)
        _check_survivors(job.scan, verified)
        duplicates = _find_duplicates(job, verified.entries)
    entries = verified.entries
    labels = np.array([entry.label for entry in entries], np.int16)
    patients = [entry.patient for entry in entries]
    splits = assign_splits(labels, patients, job.config.fractions, job.config.seed, duplicates.linked)
    channels = _channels(job.config, entries)
    gathered = Gathered(
        layout=job.scan.layout,
        classes=job.scan.classes,
        entries=entries,
        splits=splits,
        duplicates=duplicates,
        rejected=verified.rejected,
        channels=channels,
        num_masks_unused=job.masks.count_unused([entry.image for entry in entries]),
    )
    manifest = _build_manifest(entries, splits, join_patients(patients, duplicates.linked))
    info = _publish(job, verified, manifest, channels, build_audit(gathered))
    return PackResult(info, tuple(verified.rejected), 0.0)


def _verify(job: _Job, thumbnails: BinaryIO) -> _Verified:
    """Read every file once, on all cores; write shards as results come, in the order of the scan."""
    writer = ShardWriter(job.output.store, job.config.shard_mib << 20)
    verified = _Verified([], list(job.scan.rejected), (), PixelSums(), PixelSums())
    label_of = {name: label for label, name in enumerate(job.scan.classes)}
    chunks = list(_chunks(job))
    workers = min(job.config.workers or usable_cores(), len(chunks))
    results = map_in_order(examine_files, ([task for _, task in chunk] for chunk in chunks), workers)
    done = 0
    for chunk, found in zip(chunks, results, strict=True):
        for (image, _), examined in zip(chunk, found, strict=True):
            if isinstance(examined, str):
                verified.rejected.append(Rejected(image.source, examined))
            else:
                label = label_of[image.class_name]
                place = writer.add(len(verified.entries), label, examined.image, examined.mask)
                _take(verified, job.rule, image, label, place, examined)
                thumbnails.write(examined.thumbnail)
        done += len(chunk)
        job.show("images", done, len(job.scan.images))
    writer.flush()
    thumbnails.flush()
    verified.shards = tuple(writer.shards)
    verified.rejected.sort(key=lambda item: item.source)
    return verified


def _take(
    verified: _Verified, rule: PatientRule, image: ImageFile, label: int, place: tuple[int, int], examined: Examined
) -> None:
    patient, by = _patient(image, rule)
    verified.entries.append(Entry(image, label, patient, by, *place, examined.facts))
    verified.gray += examined.gray_sums
    verified.colour += examined.colour_sums


def _chunks(job: _Job) -> Iterator[list[tuple[ImageFile, Task]]]:
    """Work for one worker at a time: a few files, fewer where they are large."""
    chunk: list[tuple[ImageFile, Task]] = []
    num_bytes = 0
    for image in job.scan.images:
        path = job.scan.root / image.source
        chunk.append((image, Task(path, job.masks.of(image), job.config.max_pixels)))
        num_bytes += path.stat().st_size if path.exists() else 0
        if len(chunk) == _CHUNK_FILES or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _patient(image: ImageFile, rule: PatientRule) -> tuple[str, str]:
    return (image.patient, "csv") if image.patient else rule.patient(image.name)


def _count_rules(images: Sequence[ImageFile], rule: PatientRule) -> dict[str, int]:
    return dict(Counter(_patient(image, rule)[1] for image in images))


def _refuse_inside(out: Path, root: Path) -> None:
    if out.resolve().is_relative_to(root):
        raise InputError(
            f"The output folder {printable(repr(str(out)))} lies inside the source folder, where the next scan would "
            "take it for images. Give a folder outside."
        )


def _check_survivors(scan: Scan, verified: _Verified) -> None:
    """Refuse a set that has lost a class to the quarantine.

    Raises:
        InputError: every file of a class was rejected, or all that train had of it.
    """
    held = {entry.image.class_name for entry in verified.entries}
    for name in scan.classes:
        if name not in held:
            rejected = {item.source: item.reason for item in verified.rejected}
            example = next(image for image in scan.images if image.class_name == name)
            raise InputError(
                f"No file of the class {printable(repr(name))} can be packed, e.g. {printable(repr(example.source))}: "
                f"{rejected[example.source]}. Repair the files, or remove the class."
            )
    where = f"SRC {printable(repr(str(scan.root)))}, less what cannot be read,"
    check_classes(((entry.image.class_name, entry.image.given_split) for entry in verified.entries), where)


@contextmanager
def _thumbnail_file(path: Path) -> Iterator[BinaryIO]:
    """Small copies of all images, on disk: 4 KiB each are too many to hold for a large set."""
    try:
        with path.open("wb") as stream:
            yield stream
    finally:
        path.unlink(missing_ok=True)


def _find_duplicates(job: _Job, entries: Sequence[Entry]) -> Duplicates:
    """Copies by sha256 and, among the first of each, pictures that show the same."""
    firsts = first_of_each([entry.facts.sha256 for entry in entries])
    if not job.config.near_duplicates:
        return join_duplicates(firsts, None)
    shape = (len(entries), THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnails = np.memmap(job.output.scratch / _THUMBNAILS, np.uint8, "r", shape=shape)
    unique = np.flatnonzero(firsts == np.arange(len(firsts)))
    hashes, mirrored = (
        np.array([getattr(entry.facts, name) for entry in entries], np.uint64)[unique]
        for name in ("phash", "mirrored_phash")
    )
    near = find_near_duplicates(
        hashes,
        mirrored,
        lambda places: thumbnails[unique[places]],
        lambda done, total: job.show("near-duplicates", done, total),
    )
    return join_duplicates(firsts, dataclasses.replace(near, pairs=unique[near.pairs]))


def _channels(config: PackConfig, entries: Sequence[Entry]) -> int:
    if config.channels == "auto":
        return 3 if any(entry.facts.coloured for entry in entries) else 1
    return 1 if config.channels == "gray" else 3


def _build_manifest(entries: Sequence[Entry], splits: npt.NDArray[np.int8], groups: Sequence[str]) -> pa.Table:
    """One row an image, in id order; `group` is null for a patient that no duplicate ties to another."""
    tied = {group for group, entry in zip(groups, entries, strict=True) if group != entry.patient}
    rows = [
        {
            "id": number,
            "source": entry.image.source,
            "label": entry.label,
            "patient": entry.patient,
            "group": group if group in tied else None,
            "given_split": entry.image.given_split,
            "patient_split": SPLITS[split],
            "shard": entry.shard,
            "row": entry.row,
            "width": entry.facts.width_px,
            "height": entry.facts.height_px,
            "bytes": entry.facts.num_bytes,
            "sha256": entry.facts.sha256,
            "phash": entry.facts.phash,
            "has_mask": entry.facts.mask_sha256 is not None,
        }
        for number, (entry, split, group) in enumerate(zip(entries, splits, groups, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def _publish(
    job: _Job, verified: _Verified, manifest: pa.Table, channels: int, audit: dict[str, object]
) -> DatasetInfo:
    """Write everything that is no shard, `dataset.json` last."""
    manifest_bytes = _parquet(manifest)
    rejected = [dataclasses.asdict(item) for item in verified.rejected]
    sums = verified.gray if channels == 1 else verified.colour
    classes = job.scan.classes
    counts = np.bincount(manifest.column("label").to_numpy(), minlength=len(classes)).tolist()
    info = DatasetInfo(
        classes=classes,
        channels=channels,
        mean=sums.mean(),
        std=sums.deviation(),
        counts=dict(zip(classes, counts, strict=True)),
        num_patients=len(manifest.column("patient").unique()),
        num_quarantined=len(rejected),
        fractions=job.config.fractions,
        seed=job.config.seed,
        shards=verified.shards,
        manifest_sha256=hashlib.sha256(manifest_bytes).hexdigest(),
        fingerprint="",
        source=str(job.scan.root),
        audit=audit,
    )
    info = dataclasses.replace(info, fingerprint=_fingerprint(info, manifest, verified.entries))
    store = job.output.store
    store.write(QUARANTINE_KEY, _parquet(pa.Table.from_pylist(rejected, schema=QUARANTINE_SCHEMA)))
    store.write(MANIFEST_KEY, manifest_bytes)
    if not store.create(INFO_KEY, (json.dumps(info.to_json(), indent=2) + "\n").encode()):
        raise InputError(f"{store.locate(INFO_KEY)} was written by somebody else meanwhile. Choose a new name.")
    return info


def _fingerprint(info: DatasetInfo, manifest: pa.Table, entries: Sequence[Entry]) -> str:
    return digest(
        {
            "schema_version": SCHEMA_VERSION,
            "classes": info.classes,
            "channels": info.channels,
            "mean": info.mean,
            "std": info.std,
            "fractions": info.fractions,
            "seed": info.seed,
            "masks": digest([entry.facts.mask_sha256 for entry in entries]),
            "manifest": {name: digest(manifest.column(name).to_pylist()) for name in _FINGERPRINT_COLUMNS},
        }
    )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
