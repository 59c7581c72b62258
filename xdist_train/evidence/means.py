"""Means of columns over images and their 95 % intervals by a bootstrap over patients. Pure.

Contenders share their resamples, so that differences between them are paired.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from xdist_train.evidence.metrics import patient_resamples

__all__ = ["PatientMeans"]

Floats = npt.NDArray[np.float64]

_PURPOSE = 21  # of the random stream; the figures' bootstrap has 20


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
        blocks = patient_resamples(self.num_patients, resamples, seed, purpose=_PURPOSE)
        return np.concatenate([self._means(rows) for rows in blocks])

    def _means(self, rows: Floats) -> Floats:
        """Means [b, ...] under patients' weights [b, patients]."""
        sums, counts = rows @ self._sums, rows @ self._counts
        means = np.full(sums.shape, np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return means.reshape(len(rows), *self._shape)
