"""What a user must know of a set before trusting a figure on it: counts, leaks, shortcuts.

Owns the figures under `audit` in `dataset.json`, all plain JSON values. Reads what packing gathered; changes
nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.terminal import printable
from dataloading.dataset import SPLITS
from dataloading.packing.audit_warnings import build_warnings
from dataloading.packing.duplicates import Duplicates
from dataloading.packing.entries import Entry
from dataloading.packing.rejection import Rejected
from dataloading.packing.size_baseline import measure_size_baseline

__all__ = ["Gathered", "build_audit"]

Audit = dict[str, Any]

_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Everything that the audit looks at; `splits` is the patient split, int8 [images], in `SPLITS`."""

    layout: str
    classes: Sequence[str]
    entries: Sequence[Entry]
    splits: npt.NDArray[np.int8]
    duplicates: Duplicates
    rejected: Sequence[Rejected]
    channels: int
    num_masks_unused: int


def build_audit(gathered: Gathered) -> Audit:
    """The audit, with its warnings."""
    audit = {
        "layout": gathered.layout,
        "class_counts": _count_classes(gathered, range(len(gathered.entries))),
        "given_split_counts": _count_given(gathered),
        "patient_split_counts": _count_patient_split(gathered),
        "imbalance": _imbalance(gathered),
        "patients": _patients(gathered),
        "given_splits_share": _shared_by_given(gathered),
        "same_name": _same_names(gathered),
        "duplicates": _exact_duplicates(gathered),
        "near_duplicates": _near_duplicates(gathered),
        "size_baseline": _size_baseline(gathered),
        "metadata": _metadata(gathered),
        "pictures": _pictures(gathered),
        "masks": _masks(gathered),
        "quarantine": _quarantine(gathered),
    }
    return {**audit, "warnings": build_warnings(audit)}


def _count_classes(gathered: Gathered, rows: Iterable[int]) -> dict[str, int]:
    counts = Counter(gathered.entries[row].label for row in rows)
    return {name: counts[label] for label, name in enumerate(gathered.classes)}


def _count_given(gathered: Gathered) -> dict[str, dict[str, int]]:
    """Images of each class by the set's own splits; empty where it has none."""
    rows = defaultdict(list)
    for row, entry in enumerate(gathered.entries):
        rows[entry.image.given_split].append(row)
    return {split: _count_classes(gathered, rows[split]) for split in SPLITS if split in rows}


def _count_patient_split(gathered: Gathered) -> dict[str, dict[str, int]]:
    parts = (np.flatnonzero(gathered.splits == number).tolist() for number in range(len(SPLITS)))
    return {split: _count_classes(gathered, rows) for split, rows in zip(SPLITS, parts, strict=True)}


def _imbalance(gathered: Gathered) -> Audit:
    counts = _count_classes(gathered, range(len(gathered.entries)))
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    return {"largest": largest, "smallest": smallest, "ratio": counts[largest] / counts[smallest]}


def _patients(gathered: Gathered) -> Audit:
    classes = _values_by(gathered.entries, lambda entry: entry.patient, lambda entry: entry.label)
    images = Counter(entry.patient for entry in gathered.entries)
    return {
        "count": len(images),
        "found_by": dict(Counter(entry.rule for entry in gathered.entries)),
        "most_images": max(images.values()),
        "in_two_classes": _named([patient for patient, labels in classes.items() if len(labels) > 1]),
    }


def _shared_by_given(gathered: Gathered) -> Audit:
    """Patients and pictures that the set's own splits have in common."""
    entries = [entry for entry in gathered.entries if entry.image.given_split]
    splits = _values_by(entries, lambda entry: entry.patient, lambda entry: entry.image.given_split)
    train = {patient for patient, parts in splits.items() if "train" in parts}
    tests = [entry for entry in entries if entry.image.given_split == "test"]
    pairs = [
        (one, other)
        for one, other in _entry_pairs(gathered, gathered.duplicates.pairs)
        if one.image.given_split != other.image.given_split
    ]
    return {
        "patients": _named([patient for patient, parts in splits.items() if len(parts) > 1]),
        "test_images": len(tests),
        "test_images_of_train_patients": sum(entry.patient in train for entry in tests),
        "duplicates": _named(_pair_names(pairs)),
    }


def _same_names(gathered: Gathered) -> Audit:
    folders = _values_by(
        gathered.entries, lambda entry: entry.image.name, lambda entry: entry.image.source.rpartition("/")[0]
    )
    return _named([name for name, places in folders.items() if len(places) > 1])


def _exact_duplicates(gathered: Gathered) -> Audit:
    pairs = _entry_pairs(gathered, gathered.duplicates.exact)
    return {**_named(_pair_names(pairs)), "in_two_classes": sum(one.label != other.label for one, other in pairs)}


def _near_duplicates(gathered: Gathered) -> Audit:
    near = gathered.duplicates.near
    if near is None:
        return {"searched": False}
    pairs = _entry_pairs(gathered, near.pairs)
    between = [(one, other) for one, other in pairs if one.patient != other.patient]
    return {
        "searched": True,
        "complete": near.complete,
        "nominated": near.num_nominated,
        **_named(_pair_names(pairs)),
        "mirrored": int(near.mirrored.sum()),
        "in_two_classes": sum(one.label != other.label for one, other in pairs),
        "between_patients": _named(_pair_names(between)),
    }


def _size_baseline(gathered: Gathered) -> Audit | None:
    sizes = [(entry.facts.width_px, entry.facts.height_px) for entry in gathered.entries]
    labels = np.array([entry.label for entry in gathered.entries])
    images_per_patient = len(labels) / len({entry.patient for entry in gathered.entries})
    baseline = measure_size_baseline(sizes, labels, gathered.splits == SPLITS.index("train"), images_per_patient)
    return dataclasses.asdict(baseline) if baseline else None


def _metadata(gathered: Gathered) -> dict[str, int]:
    """Files that carry each kind."""
    return dict(sorted(Counter(kind for entry in gathered.entries for kind in entry.facts.metadata).items()))


def _pictures(gathered: Gathered) -> Audit:
    facts = [entry.facts for entry in gathered.entries]
    return {
        "channels": gathered.channels,
        "coloured": sum(fact.coloured for fact in facts),
        "turned": sum(fact.orientation != 1 for fact in facts),
        "formats": dict(Counter(fact.format for fact in facts)),
        "rewritten_as_png": sum(fact.rewritten for fact in facts),
    }


def _masks(gathered: Gathered) -> Audit:
    packed = sum(entry.facts.mask_sha256 is not None for entry in gathered.entries)
    problems = [
        f"{entry.image.source}: {entry.facts.mask_problem}" for entry in gathered.entries if entry.facts.mask_problem
    ]
    return {"packed": packed, "bad": _named(problems), "without_image": gathered.num_masks_unused}


def _quarantine(gathered: Gathered) -> Audit:
    """Rejected files by reason, details in brackets left out."""
    reasons = Counter(item.reason.partition(" (")[0] for item in gathered.rejected)
    return {"count": len(gathered.rejected), "by_reason": dict(reasons.most_common())}


def _values_by(entries: Iterable[Entry], key: Any, value: Any) -> dict[str, set[Hashable]]:
    found: dict[str, set[Hashable]] = defaultdict(set)
    for entry in entries:
        found[key(entry)].add(value(entry))
    return found


def _entry_pairs(gathered: Gathered, pairs: npt.NDArray[np.int64]) -> list[tuple[Entry, Entry]]:
    return [(gathered.entries[one], gathered.entries[other]) for one, other in pairs.tolist()]


def _pair_names(pairs: Iterable[tuple[Entry, Entry]]) -> list[str]:
    return [f"{one.image.source} = {other.image.source}" for one, other in pairs]


def _named(names: Sequence[str]) -> Audit:
    """How many, and a few of them, fit to be shown."""
    return {"count": len(names), "names": [printable(name) for name in sorted(names)[:_NAMES_SHOWN]]}
