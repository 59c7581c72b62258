"""Whether maps lie on the lesions: pointing game, energy inside, overlap; of an image, and of a set with intervals.

    pointing game   Zhang et al. 2018: the map's maximum lies in the mask, grown by half a cell of the map
    energy inside   share of the positive map that lies in the mask (Wang et al. 2020)
    IoU             of mask and map above a share of its maximum, at the one share that is best for the set

Intervals are a bootstrap over patients; differences to a baseline are paired, by the same resamples. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xdist_train.evidence.means import PatientMeans
from xdist_train.evidence.metrics import interval

__all__ = ["BLOB", "MEAN_MAP", "THRESHOLDS", "Located", "Placed", "centred_blob", "localise", "report"]

Floats = npt.NDArray[np.float64]

BLOB, MEAN_MAP = "centred_blob", "mean_map"
_STEPS = 20
THRESHOLDS = tuple(step / _STEPS for step in range(1, _STEPS))
"""Shares of a map's maximum at which it is cut for the overlap."""
_BLOB_SIGMA = 0.25  # of the side


@dataclass(frozen=True)
class Located:
    """One map against one mask: hit, energy inside (NaN for a map that is nowhere positive), IoU [thresholds]."""

    hit: bool
    energy: float
    iou: npt.NDArray[np.float32]


def localise(
    values: npt.NDArray[np.floating], peak: tuple[float, float], mask: npt.NDArray[np.bool_], cell_px: float
) -> Located | None:
    """A map against the mask of its image; None where nothing of the mask is in view.

    Args:
        values: [s, s], at the size of the model's input; what is negative counts as 0.
        peak: (y, x) of its maximum in pixels, from the edge.
        mask: [s, s].
        cell_px: side of a cell of the map, in pixels.
    """
    if not mask.any():
        return None
    positive = values.clip(0)
    total = float(positive.sum())
    energy = float(positive[mask].sum()) / total if total else np.nan
    return Located(_is_hit(peak, mask, cell_px), energy, _overlaps(positive, mask))


def centred_blob(height: int, width: int) -> Floats:
    """The baseline that looks at the middle of every picture: a Gaussian on the cells of a map, [h, w]."""
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    return np.exp(-(y[:, None] ** 2 + x**2) / (2 * _BLOB_SIGMA**2))


def _is_hit(peak: tuple[float, float], mask: npt.NDArray[np.bool_], cell_px: float) -> bool:
    rows, columns = np.nonzero(mask)
    away = np.hypot(rows + 0.5 - peak[0], columns + 0.5 - peak[1])
    return bool(away.min() <= max(cell_px / 2, 0.5))


def _overlaps(positive: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Intersection over union with each region {map >= share of its maximum}, by counting levels once."""
    top = float(positive.max())
    if not top:
        return np.zeros(len(THRESHOLDS), np.float32)
    # The small addition keeps a level that is met exactly on its upper side.
    levels = np.minimum(positive * (_STEPS / top) + 1e-6, _STEPS).astype(np.int64)
    inside, everywhere = (
        np.bincount(chosen.ravel(), minlength=_STEPS + 1)[::-1].cumsum()[::-1] for chosen in (levels[mask], levels)
    )
    union = everywhere + int(mask.sum()) - inside
    return np.asarray((inside / union)[1:_STEPS], np.float32)


@dataclass(frozen=True)
class Placed:
    """`Located` of n images as columns: hits [n], energies [n] (NaN allowed), ious [n, thresholds]."""

    hits: Floats
    energies: Floats
    ious: Floats

    @classmethod
    def joined(cls, parts: Sequence[Placed]) -> Placed:
        """All images of several."""
        columns = zip(*((part.hits, part.energies, part.ious) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Placed:
        """Some of the images."""
        return Placed(self.hits[chosen], self.energies[chosen], self.ious[chosen])


def report(
    ours: Placed,
    baselines: Mapping[str, Placed],
    labels: npt.NDArray[Any],
    patients: Sequence[Any],
    classes: Sequence[str],
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of all images with a mask, pooled and by class.

    Args:
        labels: class names [n].
        patients: [n]; the unit of the bootstrap.

    Returns:
        `pooled` and `per_class`: by figure `value`, `low`, `high`, and for each baseline its `value` and the paired
        `difference` {"value", "low", "high"}; a figure that is not defined is None.
    """
    units = np.asarray(patients)

    def part(chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        found = {name: placed.rows(chosen) for name, placed in baselines.items()}
        return _figures(ours.rows(chosen), found, units[chosen], resamples, seed)

    everything = np.ones(len(labels), np.bool_)
    by_class = {name: labels == name for name in classes}
    return {
        "pooled": part(everything),
        "per_class": {name: part(chosen) for name, chosen in by_class.items() if chosen.any()},
    }


def _figures(
    ours: Placed, baselines: Mapping[str, Placed], patients: npt.NDArray[Any], resamples: int, seed: int
) -> dict[str, Any]:
    contenders = [ours, *baselines.values()]
    columns = {
        "pointing_game": np.stack([placed.hits for placed in contenders], axis=1)[:, :, None],
        "energy_inside": np.stack([placed.energies for placed in contenders], axis=1)[:, :, None],
        "iou": np.stack([placed.ious for placed in contenders], axis=1),
    }
    figures: dict[str, Any] = {"n": len(patients), "n_patients": len(np.unique(patients))}
    for name, values in columns.items():
        figures[name] = _figure(PatientMeans(values, patients), list(baselines), resamples, seed)
    means = columns["iou"][:, 0].mean(axis=0)
    figures["iou"]["threshold"] = THRESHOLDS[int(means.argmax())]
    return figures


def _figure(means: PatientMeans, baselines: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """One figure of ours and of each baseline, at the threshold that is best for each and in each resample."""
    point = means.point().max(axis=1)
    drawn = means.resampled(resamples, seed).max(axis=2)
    figure: dict[str, Any] = {**interval(point[0], drawn[:, 0])}
    for index, name in enumerate(baselines, start=1):
        difference = interval(point[0] - point[index], drawn[:, 0] - drawn[:, index])
        figure[name] = {**interval(point[index], drawn[:, index]), "difference": difference}
    return figure
