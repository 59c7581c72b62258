"""Whether the model needs what a map points at: the answer when those pixels are taken away.

The pixels where the map is highest are replaced by a blurred copy of the picture, and as many others for comparison:
scattered at random, and where a random map of the same resolution is highest (patches as large as the map's own).
Pure.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dataloading.loading.executor import Encoded
from xdist_train.evidence.cams.geometry import upsample

__all__ = ["REMOVALS", "SHARE", "is_chosen", "removed"]

SHARE = 0.1
"""Of the pixels, that are removed."""
REMOVALS = ("top", "random_pixels", "random_map")
"""What is removed: the map's highest, scattered pixels, the highest of a random map."""
_BLUR = 1 / 16  # sigma, in shares of the side
_PURPOSE = 22  # of the random stream


def is_chosen(row: int, num_images: int, wanted: int) -> bool:
    """Whether a row is among `wanted` rows spread evenly over a split."""
    return (row + 1) * wanted // num_images > row * wanted // num_images if wanted < num_images else True


def removed(picture: Encoded, values: Tensor, image_id: int) -> dict[str, Encoded]:
    """The picture without SHARE of its pixels, for each of REMOVALS.

    Args:
        picture: uint8 [s, s, C].
        values: the map, [h, w]; signed, so that pixels of no evidence are told apart.
        image_id: decides what is random.
    """
    size = picture.shape[0]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([image_id, _PURPOSE])))
    noise = torch.from_numpy(generator.random(tuple(values.shape), np.float32))
    orders = {
        "top": upsample(values[None].float().cpu(), size)[0].numpy(),
        "random_pixels": generator.random((size, size), np.float32),
        "random_map": upsample(noise[None], size)[0].numpy(),
    }
    blurred = cv2.GaussianBlur(picture, (0, 0), size * _BLUR).reshape(picture.shape)
    return {name: np.where(_highest(order)[:, :, None], blurred, picture) for name, order in orders.items()}


def _highest(order: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    count = round(SHARE * order.size)
    chosen = np.zeros(order.size, np.bool_)
    chosen[np.argpartition(order.ravel(), order.size - count)[order.size - count :]] = True
    return chosen.reshape(order.shape)
