"""Augmentation as arithmetic: the numbers by which each draw of an epoch is cropped, turned and toned.

Pure. A draw's numbers follow from (seed, epoch, position) alone: one Philox stream an epoch, advanced to
the position, a fixed count of uniforms a position, each slot owned for ever by one step. So they do not
depend on the batch, on the worker, or on what else is switched on, and the same image drawn twice in an
epoch is augmented anew.

Knows nothing of files, pixels or libraries; `opencv` and `dali` execute what is decided here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dataloading.config import AugmentConfig

__all__ = ["Augmentation", "View", "draw_augmentation", "draw_uniforms", "plain_view"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_PURPOSE = 2  # of the key; `plan` owns 0 and 1
_BLOCKS = 3  # Philox counters a position
_SLOTS = 4 * _BLOCKS  # uniforms a position


class _Slot(IntEnum):
    """Which uniform of a position belongs to which step. Never renumber; 10 and 11 are free for later steps."""

    AREA = 0
    RATIO = 1
    CENTRE_X = 2
    CENTRE_Y = 3
    ROTATION = 4
    FLIP = 5
    FLIP_VERTICAL = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    ZOOM = 9


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a picture the model is to see, apart from chance.

    `mean_gray` is the set's mean gray level in [0, 1], about which contrast turns.
    """

    image_size: int
    fit: Literal["stretch", "crop"] = "stretch"
    mean_gray: float = 0.5
    reduce_tolerance: float = 0.9


class Augmentation(NamedTuple):
    """The numbers of n draws, for an executor.

    matrices: float64 [n, 2, 3], output to source in pixel-centre coordinates (first pixel's centre is 0.5)
        of the picture at full scale. What falls outside of the picture is 0.
    gains, shifts: float32 [n]; a gray level x becomes `round(clip(gain * x + 255 * shift, 0, 255))`.
    reductions: int64 [n], the scale 1/r at which a JPEG is decoded before it is warped.
    widths, heights: int64 [n], pixels of the source pictures at full scale.
    """

    matrices: Floats
    gains: npt.NDArray[np.float32]
    shifts: npt.NDArray[np.float32]
    reductions: Integers
    widths: Integers
    heights: Integers

    def part(self, start: int, stop: int) -> Augmentation:
        """The numbers of draws start..stop, as views."""
        return Augmentation._make(values[start:stop] for values in self)


class _Box(NamedTuple):
    """Upright boxes in source pixels: centre and sides, each float64 [n]."""

    x: Floats
    y: Floats
    width: Floats
    height: Floats


def plain_view(view: View, widths: Integers, heights: Integers) -> Augmentation:
    """The view without chance, for evaluation: the whole picture or its largest centred square.

    Args:
        view: what the model is to see.
        widths: int64 [n], pixels.
        heights: int64 [n], pixels.
    """
    box = _fitted_box(view, widths, heights)
    ones = np.ones(len(widths))
    matrices = _matrices(view.image_size, box, 0 * ones, ones, ones)
    neutral = np.ones(len(widths), np.float32)
    return Augmentation(matrices, neutral, 0 * neutral, _reductions(view, box), widths, heights)


def draw_augmentation(
    config: AugmentConfig, view: View, widths: Integers, heights: Integers, uniforms: Floats
) -> Augmentation:
    """The augmentation of some draws by their uniforms.

    A crop lies inside the view that evaluation shows, keeps a uniform share of its area, and changes its
    aspect ratio log-uniformly as far as that share leaves room. Zoom makes both sides of the crop longer or
    shorter by one factor about its centre (Keras' RandomZoom: above 1 zooms out, and may show what lies beyond the
    picture). Rotation turns the output about the same centre. Contrast acts about the mean gray level, then
    brightness scales (both as in torchvision's ColorJitter, with the set's mean in place of the picture's).

    Args:
        config: ranges of the steps.
        view: what the model is to see.
        widths: int64 [n], pixels of the source pictures.
        heights: int64 [n].
        uniforms: float64 [slots, n] of `draw_uniforms`; those of several stretches of positions may lie side by side.
    """
    box = _zoom(config, _crop(config, _fitted_box(view, widths, heights), uniforms), uniforms)
    angles = np.radians(config.rotation_degrees) * (2 * uniforms[_Slot.ROTATION] - 1)
    across = np.where(uniforms[_Slot.FLIP] < config.flip, -1.0, 1.0)
    down = np.where(uniforms[_Slot.FLIP_VERTICAL] < config.flip_vertical, -1.0, 1.0)
    matrices = _matrices(view.image_size, box, angles, across, down)
    gains, shifts = _tones(config, view.mean_gray, uniforms)
    return Augmentation(matrices, gains, shifts, _reductions(view, box), widths, heights)


def draw_uniforms(seed: int, epoch: int, start: int, count: int) -> Floats:
    """The chance of the draws at positions start, start + 1, ... of an epoch: float64 [slots, count] in [0, 1).

    Built from the generator's raw words, which NumPy promises never to change.
    """
    words = np.random.Philox(key=_key(seed, epoch), counter=start * _BLOCKS).random_raw(count * _SLOTS)
    uniforms: Floats = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniforms.reshape(count, _SLOTS).T


@lru_cache(maxsize=8)
def _key(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    return np.random.SeedSequence([seed, epoch, _PURPOSE]).generate_state(2, np.uint64).astype(np.uint64)


def _fitted_box(view: View, widths: Integers, heights: Integers) -> _Box:
    if view.fit == "stretch":
        return _Box(widths / 2, heights / 2, widths.astype(np.float64), heights.astype(np.float64))
    sides = np.minimum(widths, heights).astype(np.float64)
    return _Box(widths / 2, heights / 2, sides, sides)


def _crop(config: AugmentConfig, box: _Box, uniforms: Floats) -> _Box:
    low, high = config.crop_scale
    area = low + (high - low) * uniforms[_Slot.AREA]
    room = -np.log(area)  # a ratio beyond area..1/area would stick out of the box
    least, most = (np.clip(math.log(ratio), -room, room) for ratio in config.crop_ratio)
    ratio = np.exp(least + (most - least) * uniforms[_Slot.RATIO])
    width, height = box.width * np.sqrt(area * ratio), box.height * np.sqrt(area / ratio)
    x = box.x + (uniforms[_Slot.CENTRE_X] - 0.5) * (box.width - width)
    y = box.y + (uniforms[_Slot.CENTRE_Y] - 0.5) * (box.height - height)
    return _Box(x, y, width, height)


def _zoom(config: AugmentConfig, box: _Box, uniforms: Floats) -> _Box:
    factor = 1 + config.zoom * (2 * uniforms[_Slot.ZOOM] - 1)
    return box._replace(width=box.width * factor, height=box.height * factor)


def _matrices(image_size: int, box: _Box, angles: Floats, across: Floats, down: Floats) -> Floats:
    """Output centred, flipped, turned, scaled to the box and moved to its centre: float64 [n, 2, 3]."""
    cosines, sines = np.cos(angles), np.sin(angles)
    scale_x, scale_y = box.width / image_size, box.height / image_size
    matrices = np.empty((len(angles), 2, 3))
    matrices[:, 0, 0] = scale_x * cosines * across
    matrices[:, 0, 1] = -scale_x * sines * down
    matrices[:, 1, 0] = scale_y * sines * across
    matrices[:, 1, 1] = scale_y * cosines * down
    half = image_size / 2
    matrices[:, 0, 2] = box.x - half * (matrices[:, 0, 0] + matrices[:, 0, 1])
    matrices[:, 1, 2] = box.y - half * (matrices[:, 1, 0] + matrices[:, 1, 1])
    return matrices


def _tones(
    config: AugmentConfig, mean_gray: float, uniforms: Floats
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    brightness = 1 + config.brightness * (2 * uniforms[_Slot.BRIGHTNESS] - 1)
    contrast = 1 + config.contrast * (2 * uniforms[_Slot.CONTRAST] - 1)
    gains, shifts = contrast * brightness, mean_gray * (1 - contrast) * brightness
    return gains.astype(np.float32), shifts.astype(np.float32)


def _reductions(view: View, box: _Box) -> Integers:
    """The largest of 1, 2, 4 that leaves `reduce_tolerance` decoded pixels an output pixel on both axes."""
    room = np.minimum(box.width, box.height) / (view.image_size * view.reduce_tolerance)
    return np.where(room >= 4, 4, np.where(room >= 2, 2, 1)).astype(np.int64)
