"""The diseases of the phantom: how each class changes the geometry of a healthy retina.

Owns the table from class name to lesion. It knows nothing of pixels, images, or files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from dataloading.packing.phantom_anatomy import Curve, Ellipse, Retina, layer_index, smooth_curve

__all__ = ["LESIONS", "Lesion"]

Lesion = Callable[[Retina, Generator, float], None]

FLUID = layer_index("subretinal_fluid")
DEPOSIT = layer_index("sub_pigment_deposit")
EPITHELIUM = layer_index("pigment_epithelium")
ELLIPSOID = layer_index("ellipsoid")
OUTER_NUCLEAR = layer_index("outer_nuclear")
INNER_NUCLEAR = layer_index("inner_nuclear")
OUTER_PLEXIFORM = layer_index("outer_plexiform")


def leave_healthy(retina: Retina, rng: Generator, size: float) -> None:
    """NORMAL: nothing to add."""


def add_drusen(retina: Retina, rng: Generator, size: float) -> None:
    """DRUSEN: several separate mounds of deposit push the pigment epithelium up; the retina above yields a little."""
    mounds_um = np.zeros_like(retina.x_um)
    for centre_um in _centres_um(retina, rng, count=int(rng.integers(3, 9))):
        half_width_um = size * rng.uniform(90, 210)
        mounds_um = np.maximum(mounds_um, size * rng.uniform(55, 115) * _dome(retina, centre_um, half_width_um))
    retina.thickness_um[DEPOSIT] += mounds_um
    _compress(retina, OUTER_NUCLEAR, 0.7 * mounds_um)
    retina.gray[DEPOSIT] *= rng.uniform(0.95, 1.35)


def add_neovascular_membrane(retina: Retina, rng: Generator, size: float) -> None:
    """CNV: one broad ragged bright membrane under a broken pigment epithelium, with dark fluid over it."""
    centre_um = _centres_um(retina, rng, count=1)[0]
    half_width_um = size * rng.uniform(420, 950)
    dome = _dome(retina, centre_um, half_width_um)
    ragged = 1 + 0.28 * smooth_curve(retina=None, rng=rng, x_um=retina.x_um, wavelength_um=260)
    retina.thickness_um[DEPOSIT] += dome * ragged.clip(0.3) * size * rng.uniform(90, 190)
    retina.gray[DEPOSIT] *= rng.uniform(1.1, 1.5)
    fluid_centre_um = centre_um + rng.uniform(-0.6, 0.6) * half_width_um
    fluid = _dome(retina, fluid_centre_um, half_width_um * rng.uniform(0.7, 1.2))
    retina.thickness_um[FLUID] += fluid * size * rng.uniform(70, 170)
    _break_up(retina, rng, dome)


def add_macular_oedema(retina: Retina, rng: Generator, size: float) -> None:
    """DME: the retina swells around a cluster of dark cysts in the nuclear layers."""
    centre_um = _centres_um(retina, rng, count=1)[0]
    half_width_um = size * rng.uniform(500, 1200)
    swelling = _dome(retina, centre_um, half_width_um)
    for layer, share in ((INNER_NUCLEAR, 0.35), (OUTER_PLEXIFORM, 0.15), (OUTER_NUCLEAR, 0.5)):
        retina.thickness_um[layer] += share * swelling * size * rng.uniform(70, 190)
    for _ in range(int(rng.integers(5, 13))):
        retina.cysts.append(_cyst(retina, rng, centre_um + rng.uniform(-0.7, 0.7) * half_width_um, size))
