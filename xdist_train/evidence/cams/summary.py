"""`cam.json`: what a whole split's maps say, from the rows of its parts. Pure.

Knows columns and their meaning, neither where they came from nor where this goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xdist_train.evidence.cams import localisation, shortcut
from xdist_train.evidence.cams.faithfulness import REMOVALS, SHARE
from xdist_train.evidence.cams.localisation import Placed
from xdist_train.evidence.means import PatientMeans
from xdist_train.evidence.metrics import interval

__all__ = ["SUMMARY_COLUMNS", "figures_of", "mean_of_maps", "pointing_line"]

SUMMARY_COLUMNS = [
    "id",
    "label",
    "predicted",
    "probability",
    "border_share",
    "outside_share",
    "outside_area",
    "pointing_hit",
    "energy_inside",
    "iou",
    *(f"drop_{removal}" for removal in REMOVALS),
]
"""Of a part, all that is needed but the maps."""


def figures_of(
    rows: pa.Table,
    baselines: Mapping[str, Placed],
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int,
) -> dict[str, Any]:
    """`localisation` (None without masks), `faithfulness` (None without images for it) and `shortcut` of a split.

    Args:
        rows: SUMMARY_COLUMNS of all parts.
        baselines: of the images with a mask, in the order of rows.
        patients: of each row; the unit of the bootstrap.
        resamples: of the bootstrap.
    """
    units = np.asarray(patients)
    return {
        "localisation": _localisation(rows, baselines, units, classes, resamples),
        "faithfulness": _faithfulness(rows, units, resamples),
        "shortcut": shortcut.report(
            *(_column(rows, name) for name in ("border_share", "outside_share", "outside_area"))
        ),
        "interval": {"level": 0.95, "unit": "patient", "resamples": resamples},
    }


def mean_of_maps(total: npt.NDArray[np.float64], maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """A sum of positive maps, each in shares of its maximum, with some more maps [n, h, w] added."""
    positive = maps.clip(0)
    top = positive.max(axis=(1, 2), keepdims=True)
    summed: npt.NDArray[np.float64] = total + (positive / np.where(top > 0, top, 1)).sum(axis=0)
    return summed


def pointing_line(figures: Mapping[str, Any]) -> str:
    """The pointing game against its baselines, in a sentence; empty without masks."""
    found = figures["localisation"]
    if found is None:
        return ""
    game = found["pooled"]["pointing_game"]
    against = "; ".join(
        f"{name.replace('_', ' ')} {game[name]['value']:.2f} (better by {_range(game[name]['difference'])})"
        for name in (localisation.BLOB, localisation.MEAN_MAP)
    )
    return f"pointing game {game['value']:.2f} ({_range(game)}) on {found['pooled']['n']} images with a mask; {against}"


def _range(figure: Mapping[str, Any]) -> str:
    low, high = figure["low"], figure["high"]
    return "no interval" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _localisation(
    rows: pa.Table, baselines: Mapping[str, Placed], units: npt.NDArray[Any], classes: Sequence[str], resamples: int
) -> dict[str, Any] | None:
    hits = _column(rows, "pointing_hit")
    masked = np.isfinite(hits)
    if not masked.any():
        return None
    ious = np.asarray(rows["iou"].filter(pa.array(masked)).to_pylist(), np.float64)
    ours = Placed(hits[masked], _column(rows, "energy_inside")[masked], ious)
    labels = np.asarray(rows["label"].to_pylist(), dtype=object)[masked]
    return localisation.report(ours, baselines, labels, units[masked].tolist(), classes, resamples=resamples)


def _faithfulness(rows: pa.Table, units: npt.NDArray[Any], resamples: int) -> dict[str, Any] | None:
    """Mean drops with intervals, and by how much the map's own is larger than the others', paired."""
    drops = np.stack([_column(rows, f"drop_{removal}") for removal in REMOVALS], axis=1)
    tried = np.isfinite(drops).all(axis=1)
    if not tried.any():
        return None
    means = PatientMeans(drops[tried], units[tried])
    point, drawn = means.point(), means.resampled(resamples, seed=0)
    report: dict[str, Any] = {"n": int(tried.sum()), "share_removed": SHARE}
    for index, removal in enumerate(REMOVALS):
        report[removal] = interval(point[index], drawn[:, index])
        if index:
            report[removal]["difference"] = interval(point[0] - point[index], drawn[:, 0] - drawn[:, index])
    return report


def _column(rows: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column as float64, NaN for null."""
    return np.asarray(rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
