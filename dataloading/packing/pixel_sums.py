"""Mean and deviation of all pixels of a set, exact.

Sums of 8-bit values are whole numbers, so the result does not depend on the order of the images or on how many
processes counted them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["PixelSums", "sum_pixels"]

_FULL = 255


@dataclass(frozen=True, slots=True)
class PixelSums:
    """Number of pixels, and by channel the sum of values and of squares."""

    pixels: int = 0
    sums: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()

    def __add__(self, other: PixelSums) -> PixelSums:
        if not self.pixels:
            return other
        return PixelSums(
            self.pixels + other.pixels,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def repeated(self, channels: int) -> PixelSums:
        """Of a gray picture shown in so many equal channels."""
        assert len(self.sums) == 1
        return PixelSums(self.pixels, self.sums * channels, self.squares * channels)

    def mean(self) -> tuple[float, ...]:
        """By channel, in [0, 1]."""
        return tuple(total / (self.pixels * _FULL) for total in self.sums)

    def deviation(self) -> tuple[float, ...]:
        """By channel, in [0, 1]; at least one gray level, so that it can be divided by."""
        pairs = zip(self.sums, self.squares, strict=True)
        variances = ((self.pixels * square - total * total) / self.pixels**2 for total, square in pairs)
        return tuple(max(math.sqrt(variance), 1.0) / _FULL for variance in variances)


def sum_pixels(picture: npt.NDArray[np.uint8]) -> PixelSums:
    """Sums of a picture, uint8 [height, width] or [height, width, channels], in its order of channels."""
    planes = [picture] if picture.ndim == 2 else cv2.split(picture)
    return PixelSums(
        picture.shape[0] * picture.shape[1],
        tuple(int(cv2.sumElems(plane)[0]) for plane in planes),
        # OpenCV takes a root and squares it again; below 2**50 the nearest whole number is the exact sum.
        tuple(round(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes),
    )
