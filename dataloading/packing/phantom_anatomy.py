"""The healthy eye of the phantom: which layers a retina has and where they lie in one B-scan.

Owns the layer table, what a patient keeps between scans (`Eye`) and what one scan sees of it (`Retina`).
Lengths are micrometres, x to the right, y downwards. It knows nothing of diseases, pixels, or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = [
    "LAYERS",
    "Ellipse",
    "Eye",
    "Layer",
    "Retina",
    "build_eye",
    "build_retina",
    "layer_index",
    "smooth_curve",
]

Curve = NDArray[np.float32]

LATERAL_UM_PER_PX = 11.5  # Spectralis, 30 degrees in 768 A-scans; twice as fine in its high-resolution mode
AXIAL_UM_PER_PX = 3.87
HIGH_RESOLUTION_WIDTH_PX = 900  # no picture has a width between 768 and 1024


class Layer(NamedTuple):
    """A layer of the retina: mean thickness in micrometres and gray on the display (0 black, 1 white)."""

    name: str
    thickness_um: float
    gray: float


# From the vitreous down to Bruch's membrane. Thickness: Spectralis normative values, rounded; gray: read off
# real B-scans. `subretinal_fluid` and `sub_pigment_deposit` are gaps that only a disease opens.
LAYERS = (
    Layer("nerve_fibre", 26, 0.50),
    Layer("ganglion_cell", 40, 0.39),
    Layer("inner_plexiform", 36, 0.43),
    Layer("inner_nuclear", 34, 0.28),
    Layer("outer_plexiform", 26, 0.41),
    Layer("outer_nuclear", 74, 0.23),
    Layer("limiting_membrane", 6, 0.33),
    Layer("inner_segment", 22, 0.25),
    Layer("ellipsoid", 14, 0.74),
    Layer("outer_segment", 22, 0.42),
    Layer("subretinal_fluid", 0, 0.10),
    Layer("pigment_epithelium", 24, 0.86),
    Layer("sub_pigment_deposit", 0, 0.45),
)

# What the foveal pit leaves of a layer at its centre: inner layers part, outer nuclear and segments thicken.
PIT_REMAINS = np.array([0.05, 0.08, 0.15, 0.25, 0.45, 1.35, 1.0, 1.25, 1.0, 1.25, 1.0, 1.0, 1.0], np.float32)


def layer_index(name: str) -> int:
    """Row of a layer in every (layers, width) table; `ValueError` for a name that is not there."""
    return [layer.name for layer in LAYERS].index(name)


class Ellipse(NamedTuple):
    """An upright ellipse in micrometres; half axes along x and y."""

    x_um: float
    y_um: float
    half_width_um: float
    half_height_um: float


@dataclass(frozen=True)
class Eye:
    """What stays the same in all scans of a patient."""

    layer_scale: Curve  # (layers,) thickness over the table's
    pit_depth: float  # 0 flat .. 1 deep
    pit_width_um: float
    slope: float  # of Bruch's membrane, micrometres per micrometre
    bow_um: float  # rise of Bruch's membrane 4 mm off the centre
    wave_um: float  # amplitude of slow waves of the whole retina
    choroid_um: float
    severity: float  # size of lesions over the usual, where a disease has any


@dataclass
class Retina:
    """One scan's geometry; lesions change it in place before it is drawn.

    `thickness_um` and `gray` are (layers, width), `bruch_um` and `x_um` (width,).
    """

    x_um: Curve
    bruch_um: Curve
    thickness_um: Curve
    gray: Curve
    choroid_um: float
    cysts: list[Ellipse] = field(default_factory=list)
    bright_dots: list[Ellipse] = field(default_factory=list)

    @property
    def width_um(self) -> float:
        """Length of the scan along x."""
        return float(self.x_um[-1] - self.x_um[0])

    def boundaries_um(self) -> Curve:
        """Upper edge of each layer and, last, Bruch's membrane: (layers + 1, width)."""
        above_bruch = np.cumsum(self.thickness_um[::-1], axis=0)[::-1]
        return np.vstack([self.bruch_um - above_bruch, self.bruch_um])


def smooth_curve(rng: Generator, x_um: Curve, wavelength_um: float) -> Curve:
    """A random smooth curve over x, mean square about one: three sines around one wavelength."""
    waves_per_um = 2 * np.pi / (wavelength_um * rng.uniform(0.6, 1.6, (3, 1)))
    phases = rng.uniform(0, 2 * np.pi, (3, 1))
    curve: Curve = np.sin(x_um * waves_per_um + phases).sum(axis=0).astype(np.float32)
    return curve * np.float32(np.sqrt(2 / 3))


def build_eye(rng: Generator) -> Eye:
    """Draw a patient. The ranges are wide so that thickness or tilt alone tell no disease."""
    overall = rng.uniform(0.8, 1.3)
    return Eye(
        layer_scale=(overall * rng.uniform(0.85, 1.15, len(LAYERS))).astype(np.float32),
        pit_depth=rng.uniform(0.6, 1.0),
        pit_width_um=rng.uniform(250, 480),
        slope=rng.normal(0, 0.03),
        bow_um=rng.uniform(-120, 420),
        wave_um=rng.uniform(0, 22),
        choroid_um=rng.uniform(130, 330),
        severity=rng.uniform(0.8, 1.25),
    )


def build_retina(rng: Generator, eye: Eye, width_px: int, height_px: int, size_scale: float) -> Retina:
    """Lay a patient's healthy retina into one scan; `size_scale` is pixels over the device's own."""
    x_um = scan_positions_um(width_px, size_scale)
    height_um = height_px * AXIAL_UM_PER_PX / size_scale
    thickness_um = _thickness_um(rng, eye, x_um)
    shape_um = _bruch_shape_um(rng, eye, x_um)
    gray = np.array([[layer.gray] for layer in LAYERS], np.float32) * rng.uniform(0.88, 1.12, (len(LAYERS), 1))
    return Retina(
        x_um=x_um,
        bruch_um=shape_um + _vertical_offset_um(rng, shape_um, height_um),
        thickness_um=thickness_um,
        gray=np.broadcast_to(gray.astype(np.float32), thickness_um.shape).copy(),
        choroid_um=eye.choroid_um,
    )


def scan_positions_um(width_px: int, size_scale: float) -> Curve:
    """Where the A-scans lie, zero in the middle; wide pictures sample finer, as the device does."""
    fine = 2 if width_px >= HIGH_RESOLUTION_WIDTH_PX * size_scale else 1
    return (np.arange(width_px, dtype=np.float32) - width_px / 2) * np.float32(LATERAL_UM_PER_PX / fine / size_scale)


def _bruch_shape_um(rng: Generator, eye: Eye, x_um: Curve) -> Curve:
    slope = eye.slope + rng.normal(0, 0.012)
    waves = eye.wave_um * smooth_curve(rng, x_um, wavelength_um=3500)
    return slope * x_um - eye.bow_um * (x_um / 4000) ** 2 + waves


def _vertical_offset_um(rng: Generator, shape_um: Curve, height_um: float) -> float:
    """Room above for the thickest retina and below for some choroid; the same in health and disease."""
    highest = 0.36 * height_um - float(shape_um.min())
    lowest = 0.86 * height_um - float(shape_um.max())
    return rng.uniform(highest, lowest) if highest < lowest else (highest + lowest) / 2


def _thickness_um(rng: Generator, eye: Eye, x_um: Curve) -> Curve:
    base = np.array([layer.thickness_um for layer in LAYERS], np.float32) * eye.layer_scale
    swell = np.ones((len(LAYERS), len(x_um)), np.float32)
    swell += 0.08 * np.stack([smooth_curve(rng, x_um, wavelength_um=2500) for _ in LAYERS])
    swell[:6] *= 1 + rng.uniform(0, 0.35) * _bump(x_um, rng.uniform(x_um[0], x_um[-1]), rng.uniform(500, 1500))
    nerve_slope = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35)  # the nerve fibres thicken towards the disc
    swell[0] *= np.clip(1 + nerve_slope * x_um / 1500, 0.3, 3)
    return base[:, None] * swell * _pit(rng, eye, x_um)


def _pit(rng: Generator, eye: Eye, x_um: Curve) -> Curve:
    """Factor (layers, width): the foveal pit, anywhere, or none where the scan misses the fovea."""
    depth = eye.pit_depth * rng.uniform(0.85, 1) * (rng.random() < 0.7)
    centre_um = rng.uniform(0.6 * x_um[0], 0.6 * x_um[-1])
    return 1 + depth * (PIT_REMAINS[:, None] - 1) * _bump(x_um, centre_um, eye.pit_width_um)


def _bump(x_um: Curve, centre_um: float, sigma_um: float) -> Curve:
    bump: Curve = np.exp(-0.5 * ((x_um - centre_um) / sigma_um) ** 2).astype(np.float32)
    return bump
