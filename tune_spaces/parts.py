"""What a repetition is made of: one part for each fold or split, and seed. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import InputError
from dataloading.config import parse_fold
from dataloading.dataset import SPLITS, DatasetInfo
from dataloading.splits import split_of

__all__ = ["FOLDS", "Part", "check_folds", "describe_scheme", "overlap_of", "plan_parts", "scheme_ids", "usable_splits"]

FOLDS = "folds"
"""The scheme of all folds together; the others are values of `data.split`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One training of a repetition."""

    name: str
    """Of its run folder: `fold0-seed1`, `given-seed0`."""
    scheme: str
    """`folds`, or as `split`: parts of one scheme and seed together answer for its images, each once."""
    split: str
    """`data.split`."""
    seed: int

    @property
    def fold(self) -> int | None:
        """Number of the fold that is test, where all folds are trained."""
        fold = parse_fold(self.split) if self.scheme == FOLDS else None
        return fold[0] if fold else None


def plan_parts(folds: int, splits: Sequence[str], seeds: Sequence[int]) -> tuple[Part, ...]:
    """All parts, those of the first seed first, so that a whole one is there as early as can be."""
    places = [(FOLDS, f"fold{number}", f"fold:{number}/{folds}") for number in range(folds)]
    places += [(split, re.sub("[^a-z0-9]+", "-", split), split) for split in splits]
    return tuple(
        Part(name=f"{word}-seed{seed}", scheme=scheme, split=split, seed=seed)
        for seed in seeds
        for scheme, word, split in places
    )


def describe_scheme(scheme: str, folds: int) -> str:
    """In words."""
    words = {
        FOLDS: f"{folds} folds by patient",
        "patient": "the patient split",
        "given": "the set's own split",
        "given_test": "the set's own test",
    }
    return words.get(scheme, scheme)


def scheme_ids(manifest: pa.Table, info: DatasetInfo, scheme: str) -> np.ndarray:
    """The images that a scheme's parts of one seed answer for on test: int64 [n], rising.

    Args:
        manifest: with `SPLIT_COLUMNS`.
    """
    if scheme == FOLDS:
        return np.arange(len(manifest), dtype=np.int64)
    return np.flatnonzero(split_of(manifest, scheme, info.fractions, info.seed) == SPLITS.index("test"))


def usable_splits(manifest: pa.Table, info: DatasetInfo) -> tuple[str, ...]:
    """What is trained on where nobody said: the split by patient, and beside it the set's own, if it has one."""
    for split in ("given", "given_test"):
        try:
            split_of(manifest, split, info.fractions, info.seed)
        except InputError:
            continue
        return ("patient", split)
    return ("patient",)


def check_folds(manifest: pa.Table, info: DatasetInfo, folds: int) -> None:
    """Pass if every class has images in train, val and test of every fold.

    Raises:
        InputError: one has not, as its patients are too few.
    """
    labels = manifest.column("label").to_numpy()
    for fold in range(folds):
        parts = split_of(manifest, f"fold:{fold}/{folds}", info.fractions, info.seed)
        for number, split in enumerate(SPLITS):
            counts = np.bincount(labels[parts == number], minlength=len(info.classes))
            missing = [name for name, count in zip(info.classes, counts, strict=True) if not count]
            if missing:
                raise InputError(
                    f"folds={folds}: {split} of fold {fold} has no image of {', '.join(missing)}: images of a patient, "
                    "and duplicates, stay together, and these are too few. Use fewer folds (3 or more), give more "
                    "patients, or train without folds: folds=0."
                )


def overlap_of(audit: Mapping[str, Any]) -> dict[str, int] | None:
    """What the set's own splits share, from the audit of `pack`; None where it was not audited, or has none.

    Returns:
        `patients`: in two splits or more; `test_images`, and how many of them are `test_images_of_train_patients`;
        `duplicates`: pairs of equal pictures in two splits.
    """
    shared = audit.get("given_splits_share")
    if not shared or not audit.get("given_split_counts"):
        return None
    return {
        "patients": shared["patients"]["count"],
        "test_images": shared["test_images"],
        "test_images_of_train_patients": shared["test_images_of_train_patients"],
        "duplicates": shared["duplicates"]["count"],
    }
