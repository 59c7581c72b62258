"""Pictures picked evenly over the classes of train, as the loader shows them: plain, and in random draws.

Owns which are picked and how many. Knows nothing of drawing. torch is imported when pictures are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import SPLITS, Dataset

__all__ = ["Pixels", "Samples", "load_samples"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Samples:
    """`pixels` uint8 [images, 1 + draws, S, S, C], the plain view first; by image: label, width and height in pixels.

    `num_images` is how many there are to pick from.
    """

    pixels: Pixels
    labels: list[int]
    widths: list[int]
    heights: list[int]
    num_images: int

    def of_class(self, label: int) -> npt.NDArray[np.int64]:
        """Which of the samples show a class."""
        return np.flatnonzero(np.array(self.labels) == label)


def load_samples(
    dataset: Dataset,
    *,
    per_class: int,
    most: int,
    draws: int = 0,
    loader: LoaderConfig,
    augment: AugmentConfig | None = None,
    seed: int = 0,
) -> Samples:
    """Load training images of each class, fewer a class where `most` in all would be too many.

    Raises:
        InputError: damaged data, or no training images.
    """
    import torch

    from dataloading.loading.cache import cache_root, open_split
    from dataloading.loading.loader import Loader
    from dataloading.loading.plan import Request

    split = open_split(dataset, "patient", SPLITS[0], cache_root(loader.cache_dir))
    rows = _spread_rows(split.class_counts, per_class, most)
    requests = [Request(-1, -1, 0, 0, rows)]
    requests += [Request(0, 0, draw, draw * len(rows), rows) for draw in range(draws)]
    device = torch.device("cpu")
    with Loader(split, dataset.info, loader, augment=augment, seed=seed, device=device, threads=2) as source:
        columns = [batch.images.permute(0, 2, 3, 1).numpy().copy() for batch in source.load(requests)]
    return Samples(
        pixels=np.stack(columns, axis=1),
        labels=split.labels(rows).tolist(),
        widths=split.widths(rows).tolist(),
        heights=split.heights(rows).tolist(),
        num_images=len(split),
    )


def _spread_rows(class_counts: Sequence[int], per_class: int, most: int) -> npt.NDArray[np.int64]:
    """Rows spread evenly over each class of a split that is ordered by class."""
    wanted = max(1, min(per_class, most // len(class_counts)))
    chosen, first = [], 0
    for count in class_counts:
        steps = min(wanted, count)
        chosen += [first + (2 * step + 1) * count // (2 * steps) for step in range(steps)]
        first += count
    return np.array(chosen[:most], dtype=np.int64)
