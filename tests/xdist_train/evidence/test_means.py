"""Means and intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest

from xdist_train.evidence.means import PatientMeans
from xdist_train.evidence.metrics import interval


def test_means_leave_out_what_is_not_defined() -> None:
    """By column; a column without any figure is NaN."""
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    point = PatientMeans(values, np.array(["a", "b"])).point()
    assert point[:2].tolist() == [2.0, 5.0]
    assert np.isnan(point[2])


def test_images_of_a_patient_are_drawn_together() -> None:
    """One patient has no spread, however many images; as many patients as images have the binomial's."""
    hits = np.array([0.0, 1.0] * 50)[:, None]
    one = PatientMeans(hits, np.zeros(100)).resampled(100, 0)
    many = PatientMeans(hits, np.arange(100)).resampled(2000, 0)
    assert 0 == np.ptp(one)
    assert many.std() == pytest.approx(0.05, abs=0.005)


def test_an_interval_of_nothing_is_none() -> None:
    """Neither value nor ends."""
    assert {"value": None, "low": None, "high": None} == interval(np.nan, np.array([0.1, 0.2]))
    assert {"value": 0.5, "low": None, "high": None} == interval(0.5, np.array([0.1, np.nan, np.nan]))
