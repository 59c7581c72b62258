"""The diseases of the phantom: how each class changes the geometry of a healthy retina.

Owns the table from class name to lesion. It knows nothing of pixels, images, or files.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

from dataloading.packing.phantom_anatomy import Curve, Ellipse, Retina, layer_index, smooth_curve

__all__ = ["LESIONS", "Lesion"]

YIELD_SIGMA_UM = 260.0  # how far along the retina a push from below spreads on its way to the surface

# (retina to change in place, its random numbers, size over the usual)
Lesion = Callable[[Retina, Generator, float], None]

INNER_NUCLEAR = layer_index("inner_nuclear")
OUTER_PLEXIFORM = layer_index("outer_plexiform")
OUTER_NUCLEAR = layer_index("outer_nuclear")
ELLIPSOID = layer_index("ellipsoid")
FLUID = layer_index("subretinal_fluid")
EPITHELIUM = layer_index("pigment_epithelium")
DEPOSIT = layer_index("sub_pigment_deposit")


def leave_healthy(retina: Retina, rng: Generator, size: float) -> None:
    """NORMAL: nothing to add."""


def add_drusen(retina: Retina, rng: Generator, size: float) -> None:
    """DRUSEN: separate mounds of deposit push the pigment epithelium up; the retina above yields a little."""
    mounds_um = np.zeros_like(retina.x_um)
    for _ in range(int(rng.integers(3, 9))):
        dome = _dome(retina.x_um, _centre_um(retina, rng), size * rng.uniform(130, 280))
        mounds_um = np.maximum(mounds_um, size * rng.uniform(55, 110) * dome**0.7)
    retina.thickness_um[DEPOSIT] += mounds_um
    retina.gray[DEPOSIT] *= rng.uniform(0.95, 1.35)
    _let_inner_retina_yield(retina, mounds_um)


def add_neovascular_membrane(retina: Retina, rng: Generator, size: float) -> None:
    """CNV: one broad ragged bright membrane under a broken pigment epithelium, dark fluid over it."""
    centre_um, half_width_um = _centre_um(retina, rng), size * rng.uniform(450, 1000)
    membrane = _dome(retina.x_um, centre_um, half_width_um)
    ragged = 1 + 0.2 * smooth_curve(rng, retina.x_um, 500) + 0.1 * smooth_curve(rng, retina.x_um, 250)
    raised_um = membrane * ragged.clip(0.3) * size * rng.uniform(80, 180)
    fluid = _dome(retina.x_um, centre_um + rng.uniform(-0.7, 0.7) * half_width_um, half_width_um)
    fluid_um = fluid * size * rng.uniform(70, 160)
    retina.thickness_um[DEPOSIT] += raised_um
    retina.thickness_um[FLUID] += fluid_um
    _let_inner_retina_yield(retina, raised_um + fluid_um)
    retina.gray[DEPOSIT] *= rng.uniform(1.1, 1.5) * (1 + 0.1 * smooth_curve(rng, retina.x_um, 400))
    for layer in (ELLIPSOID, EPITHELIUM):
        broken = 0.35 + 0.3 * smooth_curve(rng, retina.x_um, 350)
        retina.gray[layer] *= 1 - membrane * broken.clip(0, 0.9)
    retina.bright_dots.extend(_mottling(retina, rng, DEPOSIT, per_mm=25))


def add_macular_oedema(retina: Retina, rng: Generator, size: float) -> None:
    """DME: the retina swells around a cluster of dark cysts in the nuclear layers."""
    centre_um, half_width_um = _centre_um(retina, rng), size * rng.uniform(600, 1300)
    swelling_um = _dome(retina.x_um, centre_um, half_width_um) * size * rng.uniform(80, 200)
    for layer, share in ((INNER_NUCLEAR, 0.4), (OUTER_PLEXIFORM, 0.1), (OUTER_NUCLEAR, 0.5)):
        retina.thickness_um[layer] += share * swelling_um
    for _ in range(int(rng.integers(5, 14))):
        x_um = centre_um + rng.uniform(-0.65, 0.65) * half_width_um
        retina.cysts.append(_cyst(retina, rng, x_um, size))


LESIONS: dict[str, Lesion] = {
    "CNV": add_neovascular_membrane,
    "DME": add_macular_oedema,
    "DRUSEN": add_drusen,
    "NORMAL": leave_healthy,
}


def _let_inner_retina_yield(retina: Retina, push_um: Curve) -> None:
    """Stretch and squeeze the layers above the photoreceptors: the surface shows a push only smoothly."""
    sigma_columns = YIELD_SIGMA_UM * len(push_um) / retina.width_um
    smooth_um = cv2.GaussianBlur(push_um[None], (0, 0), sigma_columns, borderType=cv2.BORDER_REPLICATE)[0]
    inner = retina.thickness_um[: OUTER_NUCLEAR + 1]
    inner *= np.clip(1 - (push_um - smooth_um) / inner.sum(axis=0), 0.45, 1.5)


def _cyst(retina: Retina, rng: Generator, x_um: float, size: float) -> Ellipse:
    """A cyst in one nuclear layer at `x_um`, at least 20 um high and hardly larger than the layer."""
    column = int(np.abs(retina.x_um - x_um).argmin())
    layer = INNER_NUCLEAR if rng.random() < 0.4 else OUTER_NUCLEAR
    top_um, bottom_um = retina.boundaries_um()[layer : layer + 2, column]
    half_height_um = max(20.0, float(bottom_um - top_um) * rng.uniform(0.3, 0.6))
    half_width_um = size * rng.uniform(50, 150)
    y_um = top_um + (bottom_um - top_um) * rng.uniform(0.35, 0.65)
    return Ellipse(float(retina.x_um[column]), float(y_um), half_width_um, half_height_um)


def _mottling(retina: Retina, rng: Generator, layer: int, per_mm: float) -> list[Ellipse]:
    """Small bright spots all over one layer where it is thick enough to hold them."""
    edges_um = retina.boundaries_um()
    columns = rng.integers(0, len(retina.x_um), int(per_mm * retina.width_um / 1000))
    columns = columns[retina.thickness_um[layer, columns] > 40]
    heights = rng.uniform(0.15, 0.9, len(columns))
    y_um = edges_um[layer, columns] + heights * retina.thickness_um[layer, columns]
    radii_um = rng.uniform(6, 16, len(columns))
    spots = zip(retina.x_um[columns], y_um, radii_um, strict=True)
    return [Ellipse(float(x), float(y), 1.6 * r, r) for x, y, r in spots]


def _centre_um(retina: Retina, rng: Generator) -> float:
    """Anywhere along the scan but its outer 7 %, where a lesion would be cut off."""
    return rng.uniform(0.86 * float(retina.x_um[0]), 0.86 * float(retina.x_um[-1]))


def _dome(x_um: Curve, centre_um: float, half_width_um: float) -> Curve:
    """A smooth mound of height one with a foot at `half_width_um`: a raised cosine."""
    away = np.clip((x_um - np.float32(centre_um)) / np.float32(half_width_um), -1, 1)
    dome: Curve = 0.5 + 0.5 * np.cos(np.pi * away)
    return dome
