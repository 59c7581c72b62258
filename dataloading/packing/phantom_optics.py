"""How the phantom's scanner sees a retina: geometry in micrometres -> gray pixels and the lesion mask.

Owns tissue texture, shadows, attenuation, speckle, gain and the white border. Grays are those of the display
(0 black, 1 white), which the device has already compressed. It knows nothing of diseases or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dataloading.packing.phantom_anatomy import AXIAL_UM_PER_PX, Curve, Ellipse, Retina, layer_index

__all__ = ["draw_mask", "draw_scan"]

Picture = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CYST_GRAY = 0.11
CHOROID_GRAY = 0.42
MIN_LESION_PX = 1.0  # a gap thinner than this cannot be seen and is no part of the mask
LESION_LAYERS = (layer_index("subretinal_fluid"), layer_index("sub_pigment_deposit"))
SUBPIXEL_BITS = 4


def draw_scan(retina: Retina, rng: Generator, height_px: int, size_scale: float, speckle: float) -> Bytes:
    """Draw a B-scan, (height, width) 8 bit; `speckle` is the noise over the usual, 0 for none."""
    um_per_px = AXIAL_UM_PER_PX / size_scale
    edges_px = retina.boundaries_um() / np.float32(um_per_px)
    rows = np.arange(height_px, dtype=np.float32)[:, None]
    scan = _choroid(retina, rng, rows, edges_px, um_per_px)
    _paint_layers(scan, rows, edges_px, retina.gray)
    _paint(scan, _stamp(retina, retina.cysts, scan.shape, um_per_px), CYST_GRAY)
    _paint(scan, _stamp(retina, retina.bright_dots + _foci(retina, rng), scan.shape, um_per_px), 0.85)
    scan *= 1 + 0.14 * _texture(rng, scan.shape, cell_px=(3, 7))
    _cast_shadows(scan, retina, rng, rows, edges_px[3])
    blurred = np.asarray(cv2.GaussianBlur(scan, (3, 3), 0.7), np.float32)
    pixels = _expose(blurred, rng, rows, speckle)
    _paint_border(pixels, rng)
    return pixels


def draw_mask(retina: Retina, height_px: int, size_scale: float) -> Bytes:
    """Lesions of a scan as (height, width) 8 bit: 255 in cysts, fluid and deposits, 0 elsewhere."""
    um_per_px = AXIAL_UM_PER_PX / size_scale
    edges_px = retina.boundaries_um() / np.float32(um_per_px)
    rows = np.arange(height_px, dtype=np.float32)[:, None]
    lesion = _stamp(retina, retina.cysts, (height_px, len(retina.x_um)), um_per_px) > 127
    for layer in LESION_LAYERS:
        top, bottom = edges_px[layer], edges_px[layer + 1]
        lesion |= (rows >= top) & (rows < bottom) & (bottom - top >= MIN_LESION_PX)
    return lesion.astype(np.uint8) * 255


def _choroid(retina: Retina, rng: Generator, rows: Picture, edges_px: Picture, um_per_px: float) -> Picture:
    """Everything under Bruch's membrane, fading with depth, with dark vessels; black above it."""
    bruch_px = edges_px[-1]
    depth_um = (rows - bruch_px) * np.float32(um_per_px)
    fade_um = retina.choroid_um * rng.uniform(0.6, 1.3)
    scan: Picture = CHOROID_GRAY * np.exp(-np.clip(depth_um, 0, None) / np.float32(fade_um))
    scan *= 1 + 0.22 * _texture(rng, scan.shape, cell_px=(9, 14))
    lumens = _stamp(retina, _choroid_vessels(retina, rng), scan.shape, um_per_px)
    scan *= 1 - cv2.GaussianBlur(lumens, (5, 5), 1.2).astype(np.float32) * np.float32(0.45 / 255)
    scan *= np.clip(rows - bruch_px + 0.5, 0, 1)
    return scan


def _paint_layers(scan: Picture, rows: Picture, edges_px: Picture, gray: Picture) -> None:
    """Add the retina above Bruch's membrane: at each edge the gray steps softly to the next layer's."""
    first = int(np.clip(edges_px[0].min() - 1, 0, len(scan)))
    last = int(np.clip(edges_px[-1].max() + 2, first, len(scan)))
    band, band_rows = scan[first:last], rows[first:last]
    steps = np.diff(gray, axis=0, prepend=0, append=0).astype(np.float32)
    for edge, step in zip(edges_px, steps, strict=True):
        band += step * np.clip(band_rows - edge + 0.5, 0, 1)


def _paint(scan: Picture, weight: Bytes, gray: float) -> None:
    """Blend one gray into the scan where `weight` (0..255) says."""
    share = cv2.GaussianBlur(weight, (3, 3), 0.8).astype(np.float32) * np.float32(1 / 255)
    scan += (np.float32(gray) - scan) * share


def _stamp(retina: Retina, ellipses: Sequence[Ellipse], shape: tuple[int, ...], um_per_px: float) -> Bytes:
    """Filled ellipses, white on black, edges smooth to a sixteenth of a pixel."""
    canvas = np.zeros(shape, np.uint8)
    lateral_um_per_px = retina.width_um / (shape[1] - 1)
    subpixels = np.array([1 / lateral_um_per_px, 1 / um_per_px]) * (1 << SUBPIXEL_BITS)
    for ellipse in ellipses:
        corner_um = (ellipse.x_um - float(retina.x_um[0]), ellipse.y_um)
        centre = np.round(corner_um * subpixels).astype(int).tolist()
        axes = np.round((ellipse.half_width_um, ellipse.half_height_um) * subpixels).astype(int).tolist()
        cv2.ellipse(canvas, centre, axes, 0, 0, 360, 255, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas


def _choroid_vessels(retina: Retina, rng: Generator) -> list[Ellipse]:
    """Dark lumens in the choroid, larger with depth; about one in 150 micrometres."""
    count = max(1, int(retina.width_um / 150))
    columns = rng.integers(0, len(retina.x_um), count)
    depths = rng.uniform(0.15, 1.0, count)
    radii_um = (20 + 35 * depths) * rng.uniform(0.6, 1.3, count)
    return [
        Ellipse(float(retina.x_um[c]), float(retina.bruch_um[c] + d * retina.choroid_um), 1.6 * r, r)
        for c, d, r in zip(columns, depths, radii_um, strict=True)
    ]


def _foci(retina: Retina, rng: Generator) -> list[Ellipse]:
    """Vessel walls and hyperreflective foci, in every class: small dots anywhere in the inner retina."""
    edges_um = retina.boundaries_um()
    columns = rng.integers(0, len(retina.x_um), int(rng.poisson(rng.choice([1, 4, 12]))))
    radii_um = rng.uniform(6, 14, len(columns))
    heights = rng.uniform(0.05, 0.95, len(columns))
    tops, bottoms = edges_um[0, columns], edges_um[layer_index("outer_nuclear"), columns]
    centres = zip(retina.x_um[columns], tops + heights * (bottoms - tops), radii_um, strict=True)
    return [Ellipse(float(x), float(y), 1.5 * r, r) for x, y, r in centres]


def _texture(rng: Generator, shape: tuple[int, ...], cell_px: tuple[int, int]) -> Picture:
    """Smooth random field about zero: one normal number a cell (height, width), linear in between."""
    cells = (shape[0] // cell_px[0] + 2, shape[1] // cell_px[1] + 2)
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)


def _cast_shadows(scan: Picture, retina: Retina, rng: Generator, rows: Picture, start_px: Curve) -> None:
    """Vessels darken all below them; strips of the scan differ in brightness (cataract, pupil)."""
    count = int(rng.poisson(retina.width_um / 2200))
    centres_um = rng.uniform(retina.x_um[0], retina.x_um[-1], (count, 1))
    away = (retina.x_um - centres_um) / rng.uniform(15, 60, (count, 1))
    shade = (rng.uniform(0.15, 0.6, (count, 1)) * np.exp(-0.5 * away**2)).sum(axis=0).clip(0, 0.7)
    scan *= 1 - shade.astype(np.float32) * np.clip((rows - start_px) / 4, 0, 1)
    wide = _texture(rng, (1, scan.shape[1]), cell_px=(1, scan.shape[1] // 4))
    scan *= (1 + rng.uniform(0, 0.25) * wide).clip(0.4, 1.6)


def _expose(scan: Picture, rng: Generator, rows: Picture, speckle: float) -> Bytes:
    """Gain, gamma, noise floor and speckle of one exposure -> 8 bit.

    Where little light comes back the noise floor shows as coarse grain; in bright tissue speckle is fainter.
    """
    gain = np.exp(rng.normal(0, 0.22))
    floor = np.float32(rng.uniform(0.06, 0.17))
    fall = np.float32(rng.uniform(0.3, 1.0) / len(rows))
    ground = floor * (1 - fall * rows)
    signal = gain * scan ** np.float32(rng.uniform(0.85, 1.25))
    spread = np.float32(speckle * rng.uniform(0.8, 1.2)) * (0.5 * ground / (1 + 4 * signal) + 0.07 * signal)
    signal += ground / (1 + 3 * signal) + spread * _grain(rng, scan.shape)
    pixels: Bytes = np.clip(signal * np.float32(255), 0, 255).astype(np.uint8)
    return pixels


def _grain(rng: Generator, shape: tuple[int, ...]) -> Picture:
    """Noise of zero mean and about unit variance, correlated 0.6 down and 0.35 across as in real B-scans."""
    white = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape).astype(np.float32)
    across, down = np.array([0.2, 1, 0.2], np.float32), np.array([0.5, 1, 0.5], np.float32)
    per_byte = 1 / (73.9 * np.sqrt((across**2).sum() * (down**2).sum()))
    offset = 127.5 * across.sum() * down.sum()
    grain = cv2.sepFilter2D(white, -1, across, down)
    return (grain - np.float32(offset)) * np.float32(per_byte)


def _paint_border(pixels: Bytes, rng: Generator) -> None:
    """White wedges above and below, left by turning the scan level; in about two of three scans."""
    if rng.random() > 0.65:
        return
    height, width = pixels.shape
    rows = np.arange(height)[:, None]
    slant = rng.uniform(-0.1, 0.1) * np.linspace(-0.5, 0.5, width) * height
    top, bottom = rng.exponential(0.05, 2) * height
    pixels[rows < top + slant - abs(slant[0])] = 255
    pixels[rows >= height - bottom + slant + abs(slant[0])] = 255
