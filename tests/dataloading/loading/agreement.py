"""What "two executors agree" means, in gray levels, and the inputs on which it is asked.

Used on CPU here and on a GPU in `tests/gpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from dataloading.config import AugmentConfig
from dataloading.loading.augment import Augmentation, View, draw_augmentation, draw_uniforms
from dataloading.loading.executor import Executor, ExecutorSpec

__all__ = [
    "AT_FULL_SCALE",
    "AT_REDUCED_SCALE",
    "Difference",
    "augmentation_of",
    "build_spec",
    "difference",
    "run",
]


class Difference(NamedTuple):
    """Absolute differences of two batches in gray levels."""

    mean: float
    percentile_99: float
    maximum: float

    def is_within(self, limit: Difference) -> bool:
        """Whether no figure is above the limit's."""
        return all(value <= most for value, most in zip(self, limit, strict=True))


AT_FULL_SCALE = Difference(mean=0.02, percentile_99=1, maximum=2)
"""Same decoder, same warp: rounding is all that differs."""

AT_REDUCED_SCALE = Difference(mean=0.8, percentile_99=6, maximum=40)
"""libjpeg's own half and quarter scale against a Gaussian resize of the full picture: two filters."""


def build_spec(device: torch.device, channels: int, image_size: int = 224) -> ExecutorSpec:
    """An executor of two threads with two batches in flight."""
    return ExecutorSpec(image_size=image_size, channels=channels, threads=2, in_flight=2, device=device)


def augmentation_of(
    images: Sequence[bytes],
    *,
    reduce_tolerance: float,
    image_size: int = 224,
    config: AugmentConfig | None = None,
) -> Augmentation:
    """One draw of each image, every step switched on."""
    shapes = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE).shape for image in images]
    heights, widths = np.array(shapes).T
    view = View(image_size=image_size, mean_gray=0.2, reduce_tolerance=reduce_tolerance)
    config = config or AugmentConfig(flip_vertical=0.5)
    return draw_augmentation(config, view, widths, heights, draw_uniforms(0, 0, 0, len(widths)))


def run(executor: Executor, images: Sequence[bytes], augmentation: Augmentation) -> torch.Tensor:
    """One batch, uint8 [n, C, S, S] in host memory."""
    return executor.submit([np.frombuffer(image, np.uint8) for image in images], augmentation).result().cpu()


def difference(one: torch.Tensor, other: torch.Tensor) -> Difference:
    """How far two batches of one shape are apart."""
    assert one.shape == other.shape
    levels = (one.int() - other.int()).abs().numpy()
    return Difference(float(levels.mean()), float(np.percentile(levels, 99)), float(levels.max()))
