"""Maps, masks and pictures laid over each other: cells of a map, pixels of the model's input, pixels of a file.

Coordinates count from the outer edge, so the centre of the first pixel or cell is 0.5 (as in the data plane).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from dataloading.loading.executor import Encoded, index_matrices

__all__ = ["map_on_picture", "peak_px", "upsample", "warp_mask"]

Floats = npt.NDArray[np.float64]


def upsample(maps: Tensor, image_size: int) -> Tensor:
    """Maps [n, h, w] at the size of the model's input, [n, s, s]: bilinear, as OpenCV resizes."""
    size = (image_size, image_size)
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def peak_px(values: npt.NDArray[np.floating], image_size: int) -> tuple[float, float]:
    """Where a map [h, w] is largest: the centre of that cell as (y, x) in pixels of the model's input."""
    height, width = values.shape
    row, column = divmod(int(values.argmax()), width)
    return (row + 0.5) * image_size / height, (column + 0.5) * image_size / width


def warp_mask(encoded: Encoded, matrix: Floats, image_size: int) -> npt.NDArray[np.bool_]:
    """A mask as the model's input would show it: bool [s, s], by the nearest pixel.

    Args:
        encoded: the mask's PNG, as large as its image.
        matrix: [2, 3] of the image's own view, output to source.
    """
    mask = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    assert mask is not None, "a packed mask is a whole PNG"
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    inverse = index_matrices(matrix[None], np.ones(1, np.int64))[0]
    return np.asarray(cv2.warpAffine(mask, inverse, (image_size, image_size), flags=flags)) > 0


def map_on_picture(
    values: npt.NDArray[np.floating], matrix: Floats, image_size: int, source: tuple[int, int], shown: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """A map [h, w] where it belongs on a picture: float32 [shown height, shown width], 0 where the model saw nothing.

    Args:
        matrix: [2, 3] of the view, output to source.
        image_size: of the model's input.
        source: (width, height) of the picture as packed.
        shown: (width, height) that it is drawn at.
    """
    height, width = values.shape
    scale = np.array(shown) / np.array(source)
    on_source = matrix * scale[:, None]
    cells = on_source @ np.diag([image_size / width, image_size / height, 1.0])
    forward = index_matrices(cells[None], np.ones(1, np.int64))[0]
    drawn = cv2.warpAffine(
        values.astype(np.float32), forward, shown, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    seen = np.zeros(drawn.shape, np.float32)
    left, top = np.rint(on_source[:, 2]).astype(int).clip(0)
    right, bottom = np.rint(on_source @ [image_size, image_size, 1.0]).astype(int)
    seen[top:bottom, left:right] = 1
    return drawn.clip(0) * seen
