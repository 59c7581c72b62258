"""Whether a model answers by what it should not look at: the border of the picture, and what is no tissue.

Shares of the positive map, against the share of the picture that the same place covers: a map that is spread evenly
has equal shares. Pure.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from dataloading.loading.executor import Encoded

__all__ = ["BORDER", "border_of", "energy_share", "outside_tissue", "report"]

BORDER = 0.1
"""Width of the border, in shares of the picture's side."""
_HIGH = 1.1
"""A share of the map is high above so many times the share of the picture: more than an even map has, by a margin."""
_TISSUE_PX = 64
_WHITE = 250  # gray level
_BLUR = 1 / 32  # sigma of the blur before tissue is told from background, in shares of the side
_LEAST_SPREAD = 8.0  # gray levels between the two; less is a picture of one kind


def border_of(image_size: int) -> Tensor:
    """1 on the outer BORDER of a picture, else 0: float32 [s, s]."""
    width = round(BORDER * image_size)
    border = torch.ones(image_size, image_size)
    border[width : image_size - width, width : image_size - width] = 0
    return border


def outside_tissue(picture: Encoded) -> npt.NDArray[np.float32] | None:
    """1 where a gray picture [s, s] shows background, 0 on tissue, the brighter of two kinds by Otsu's threshold on
    a small, smooth copy, float32 [_TISSUE_PX, _TISSUE_PX]; None where there are no two kinds.

    What is white is no tissue either: filled corners of a turned scan, letters and marks.
    """
    inked = np.where(picture >= _WHITE, 0, picture).astype(np.uint8)
    small = cv2.resize(inked, (_TISSUE_PX, _TISSUE_PX), interpolation=cv2.INTER_AREA)
    blurred = np.asarray(cv2.GaussianBlur(small, (0, 0), _TISSUE_PX * _BLUR))
    level, _ = cv2.threshold(blurred, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    tissue = blurred > level
    if tissue.all() or not tissue.any() or blurred[tissue].mean() - blurred[~tissue].mean() < _LEAST_SPREAD:
        return None
    return (~tissue).astype(np.float32)


def energy_share(maps: Tensor, places: Tensor) -> Tensor:
    """Share of each positive map [n, h, w] in a place [n, s, s] of 0 and 1: float [n], NaN for a map without any."""
    positive = maps.clamp(min=0)
    shares = functional.adaptive_avg_pool2d(places, (maps.shape[1], maps.shape[2]))
    return (positive * shares).sum(dim=(1, 2)) / positive.sum(dim=(1, 2))


def report(border: npt.NDArray[Any], outside: npt.NDArray[Any], outside_area: npt.NDArray[Any]) -> dict[str, Any]:
    """Mean shares of a set's maps, whether they are high, and a sentence if one is.

    Args:
        border: [n], share of each map on the border.
        outside: [n], outside tissue.
        outside_area: [n], share of each picture outside tissue.
    """
    border_area = 1 - (1 - 2 * BORDER) ** 2
    defined = np.isfinite(outside) & np.isfinite(outside_area)
    found = {
        "border": _compared(border[np.isfinite(border)], border_area),
        "outside_tissue": _compared(outside[defined], float(outside_area[defined].mean()) if defined.any() else 0.0),
    }
    return {**found, "warning": _warning(found)}


def _compared(shares: npt.NDArray[Any], area: float) -> dict[str, Any]:
    share = float(shares.mean()) if len(shares) else None
    return {"share": share, "area": area, "high": share is not None and share > _HIGH * area, "n": len(shares)}


def _warning(found: dict[str, dict[str, Any]]) -> str | None:
    places = {"border": f"on the outer {BORDER:.0%} of the picture", "outside_tissue": "outside tissue"}
    said = [
        f"{found[name]['share']:.0%} of the maps' energy lies {place}, which is {found[name]['area']:.0%} of the area"
        for name, place in places.items()
        if found[name]["high"]
    ]
    if not said:
        return None
    return f"{' and '.join(said)}: the model may answer by something other than the tissue. Look at the gallery."
