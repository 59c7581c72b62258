"""One micro batch as the loop gets it, and the last step before the model: normalising and expanding gray.

Pixels stay uint8 and gray stays one channel up to here, so that a copy to a device moves a twelfth of the
bytes. Knows nothing of where pictures come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

__all__ = ["Batch", "normalise"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro batch.

    images: uint8 [n, C, S, S], C the channels of the dataset.
    labels: int64 [n].
    rows: int64 [n], rows of the split.
    epoch, step, index: of the request; -1, -1 and the index for evaluation.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    epoch: int
    step: int
    index: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking) for name in ("images", "labels", "rows")
        }
        return dataclasses.replace(self, **moved)


def normalise(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`(images / 255 - mean) / std` as one multiply and one add, in place, on the images' device.

    Without mean and std each picture is taken by its own: the deviation over all its pixels and channels, but not less
    than 1 / sqrt(their number), which a blank picture would need (as `tf.image.per_image_standardization` of pixels
    in [0, 1]).

    One channel is expanded to `channels` last, without a copy where mean and std have one figure: the result
    is then a view, and the caller decides on `contiguous`. bfloat16 and float16 are rounded once, at the end.

    Args:
        images: uint8 [n, C, S, S], C either 1 or `channels`.
        mean: in [0, 1]; one figure, one a channel, or none: each picture's own.
        std: as `mean`.
        channels: of the result.
        dtype: of the result.

    Returns:
        dtype [n, channels, S, S].
    """
    assert images.shape[1] in (1, channels), f"{images.shape[1]} channels cannot become {channels}"
    assert len(mean) == len(std), f"{len(mean)} means, {len(std)} standard deviations"
    assert len(mean) in (0, 1, channels), f"{len(mean)} means for {channels} channels"
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    result = images.to(wide)
    if not mean:
        result = _standardised(result.div_(255))
    elif len(mean) == 1:
        result = result.mul_(1 / (255 * std[0])).sub_(mean[0] / std[0])
    else:
        scale, bias = _affine(tuple(mean), tuple(std), images.device, wide)
        result = torch.addcmul(bias, result, scale)
    return result.to(dtype).expand(-1, channels, -1, -1)


def _standardised(pixels: torch.Tensor) -> torch.Tensor:
    """Each picture of float [n, C, S, S] by its own figures, in place."""
    std, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
    return pixels.sub_(mean).div_(std.clamp_min_(pixels[0].numel() ** -0.5))


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and bias, [1, channels, 1, 1] each; kept, since making them waits for the device."""
    figures = [(1 / (255 * s), -m / s) for m, s in zip(mean, std, strict=True)]
    scale, bias = torch.tensor(figures, dtype=torch.float64).to(device, dtype).T.reshape(2, 1, -1, 1, 1)
    return scale, bias
