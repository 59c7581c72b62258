"""A picture for people, plain and with the map over it, in the picture's own aspect. Knows no model and no store."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from dataloading.loading.executor import Encoded

__all__ = ["draw_overlay", "encode_jpeg", "shown_picture"]

_OPACITY = 0.55  # of the map where it is highest
_COLOURS = cv2.COLORMAP_TURBO
_QUALITY = 88


def shown_picture(encoded: Encoded, longest_px: int) -> tuple[Encoded, tuple[int, int]]:
    """An encoded picture as BGR uint8 [h, w, 3], upright, no side above `longest_px`; and its own (width, height)."""
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR_BGR)
    assert picture is not None, "a packed picture decodes"
    height, width = picture.shape[:2]
    scale = min(1.0, longest_px / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8), (width, height)


def draw_overlay(picture: Encoded, values: npt.NDArray[np.float32]) -> Encoded:
    """The picture with a map over it: its colour by the share of the map's maximum, and the more of it the higher.

    Args:
        picture: BGR uint8 [h, w, 3].
        values: [h, w], 0 or more.
    """
    share = values / (float(values.max()) or 1.0)
    colours = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), _COLOURS)
    opacity = (_OPACITY * np.sqrt(share))[:, :, None]
    return np.asarray(np.rint(picture * (1 - opacity) + colours * opacity), np.uint8)


def encode_jpeg(picture: Encoded) -> bytes:
    """The picture as JPEG."""
    encoded: bytes = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return encoded
