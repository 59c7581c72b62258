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

_BLOCK_BYTES = 1 << 21  # of the channels that come in; the fastest of 0.5, 1 and 2 MiB, with 1 MiB of cache a core


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
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """`(images / 255 - mean) / std` as one multiply and one add, in place, on the images' device.

    Without mean and std each picture is taken by its own: the deviation over all its pixels and channels, but not less
    than 1 / sqrt(their number), which a blank picture would need (as `tf.image.per_image_standardization` of pixels
    in [0, 1]).

    One channel is expanded to `channels` last: without a copy where mean and std have one figure and no
    `memory_format` is asked for. bfloat16 and float16 are rounded once, at the end.

    Args:
        images: uint8 [n, C, S, S], C either 1 or `channels`.
        mean: in [0, 1]; one figure, one a channel, or none: each picture's own.
        std: as `mean`.
        channels: of the result.
        dtype: of the result.
        memory_format: in which the result is dense; None: however it comes, a view perhaps.

    Returns:
        dtype [n, channels, S, S].
    """
    assert images.shape[1] in (1, channels), f"{images.shape[1]} channels cannot become {channels}"
    assert len(mean) == len(std), f"{len(mean)} means, {len(std)} standard deviations"
    assert len(mean) in (0, 1, channels), f"{len(mean)} means for {channels} channels"
    shape = (len(images), channels, *images.shape[2:])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plain = images.device.type == "cpu" and memory_format == torch.contiguous_format
    if plain and dtype == wide and len(mean) < 2:
        return _normalised_plane_by_plane(images, mean, std, torch.empty(shape, dtype=dtype))
    result = images.to(wide)
    if len(mean) < 2:
        _normalise_in_place(result, mean, std)
    else:
        scale, bias = _affine(tuple(mean), tuple(std), images.device, wide)
        result = torch.addcmul(bias, result, scale)
    result = result.to(dtype).expand(shape)
    return result if memory_format is None else result.contiguous(memory_format=memory_format)


def _normalised_plane_by_plane(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], result: torch.Tensor
) -> torch.Tensor:
    """`result`, filled: what comes in is normalised where it lies, a gray channel copied while it is in the cache."""
    channels = images.shape[1]
    block = max(1, _BLOCK_BYTES // (result.element_size() * images.shape[1:].numel()))
    for pictures, target in zip(images.split(block), result.split(block), strict=True):
        first = target[:, :channels].copy_(pictures)
        _normalise_in_place(first, mean, std)
        for channel in range(channels, result.shape[1]):
            target[:, channel].copy_(first[:, 0])
    return result


def _normalise_in_place(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Gray levels, float [n, C, S, S], by one mean for all channels or by each picture's own figures."""
    if mean:
        pixels.mul_(1 / (255 * std[0])).sub_(mean[0] / std[0])
        return
    own_std, own_mean = torch.std_mean(pixels.div_(255), dim=(1, 2, 3), correction=0, keepdim=True)
    pixels.sub_(own_mean).div_(own_std.clamp_min_(pixels.shape[1:].numel() ** -0.5))


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and bias, [1, channels, 1, 1] each; kept, since making them waits for the device."""
    figures = [(1 / (255 * s), -m / s) for m, s in zip(mean, std, strict=True)]
    scale, bias = torch.tensor(figures, dtype=torch.float64).to(device, dtype).T.reshape(2, 1, -1, 1, 1)
    return scale, bias
