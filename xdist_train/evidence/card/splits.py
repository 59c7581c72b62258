"""How many images and patients lie in each split of a run, and how many patients in more than one. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dataloading.dataset import SPLITS, DatasetInfo
from dataloading.splits import split_of

__all__ = ["SplitFacts", "count_splits"]


@dataclass(frozen=True)
class SplitFacts:
    """Counts in the order of SPLITS; `classes` has one of each class, in the classes' order."""

    images: tuple[int, ...]
    patients: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    shared_patients: int


def count_splits(info: DatasetInfo, manifest: pa.Table, scheme: str) -> SplitFacts:
    """Count a scheme's splits.

    Args:
        manifest: with the columns `SPLIT_COLUMNS`.
        scheme: as `data.split`.
    """
    parts = split_of(manifest, scheme, info.fractions, info.seed)
    _, patients = np.unique(np.asarray(manifest["patient"].to_pylist(), dtype=str), return_inverse=True)
    held = np.zeros((len(SPLITS), patients.max() + 1), bool)
    held[parts[parts >= 0], patients[parts >= 0]] = True
    labels = manifest["label"].to_numpy()
    classes = [np.bincount(labels[parts == part], minlength=len(info.classes)) for part in range(len(SPLITS))]
    return SplitFacts(
        images=tuple(int(counts.sum()) for counts in classes),
        patients=tuple(held.sum(axis=1).tolist()),
        classes=tuple(tuple(counts.tolist()) for counts in classes),
        shared_patients=int((held.sum(axis=0) > 1).sum()),
    )
