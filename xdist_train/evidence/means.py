"""Means of columns over images and their 95 % intervals by a bootstrap over patients. Pure.

Contenders share their resamples, so that differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PatientMeans", "interval"]

Floats = npt.NDArray[np.float64]

_PURPOSE = 21  # of the random stream; the figures' bootstrap has 20
_CHUNK_ELEMENTS = 4_000_000


class PatientMeans:
    """Each patient's sums and counts of values [n, ...], NaN left out, so that a resample is arithmetic.

    Args:
        values: [n, ...]; an image a row.
        patients: [n], any values; equal means the same patient.
    """

    def __init__(self, values: Floats, patients: npt.NDArray[Any]) -> None:
        unit = np.unique(patients, return_inverse=True)[1]
        self._shape = values.shape[1:]
        self.num_patients = int(unit.max()) + 1
        defined = np.isfinite(values).reshape(len(values), -1)
        flat = np.where(defined, values.reshape(len(values), -1), 0.0)
        self._sums, self._counts = np.zeros((2, self.num_patients, flat.shape[1]))
        np.add.at(self._sums, unit, flat)
        np.add.at(self._counts, unit, defined)

    def point(self) -> Floats:
        """Means over all images, [...]; NaN where nothing is defined."""
        point: Floats = self._means(np.ones((1, self.num_patients)))[0]
        return point

    def resampled(self, resamples: int, seed: int) -> Floats:
        """Means over each resample of the patients, [resamples, ...]."""
        return np.concatenate([self._means(rows) for rows in _resamples(self.num_patients, resamples, seed)])

    def _means(self, rows: Floats) -> Floats:
        """Means [b, ...] under patients' weights [b, patients]."""
        sums, counts = rows @ self._sums, rows @ self._counts
        means = np.full(sums.shape, np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return means.reshape(len(rows), *self._shape)


def _resamples(num_patients: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each patient was drawn, in blocks [b, patients]."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _PURPOSE])))
    block = max(1, _CHUNK_ELEMENTS // num_patients)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        cells = generator.integers(0, num_patients, (rows, num_patients)) + num_patients * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * num_patients).reshape(rows, -1).astype(np.float64)


def interval(value: float, drawn: Floats) -> dict[str, Any]:
    """A figure and the ends of its interval; None where it, or most of its resamples, are not defined."""
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or 2 * len(defined) < len(drawn):
        return {"value": float(value) if np.isfinite(value) else None, "low": None, "high": None}
    low, high = np.percentile(defined, (2.5, 97.5))
    return {"value": float(value), "low": float(low), "high": float(high)}
