"""The executor of pictures that live in the device's memory: nothing is decoded and nothing travels in training.

All pixels of a data set are one tensor there, copied once from the node's file (`pixels.py`). A batch is warped by
torch's own operations on the caller's stream, in the arithmetic of the other executors: bilinear, 0 outside, rounded to
gray levels before and after the tone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.disk import readable_bytes
from cluster.errors import InputError
from dataloading.loading.augment import Augmentation
from dataloading.loading.executor import ExecutorSpec, index_matrices
from dataloading.loading.pixels import Pixels

__all__ = ["ResidentExecutor"]

_COPY_BYTES = 1 << 28
_LEFT = 0.5
"""Share of the device's memory that is left to the model."""
_CHUNK = 64
"""Pictures of one pass, which bounds what it needs beside its batch: 60 bytes a pixel."""


class ResidentExecutor:
    """Warps and tones pictures of `Pixels.places`; a batch is submitted and done in the caller's thread.

    Raises:
        InputError: the pictures would take more than half of the device's memory.
    """

    def __init__(self, spec: ExecutorSpec, pixels: Pixels) -> None:
        self._spec = spec
        self._data = _resident(pixels, spec.device)
        steps = torch.arange(spec.image_size, dtype=torch.float32, device=spec.device)
        self._columns, self._rows = steps.view(1, 1, -1), steps.view(1, -1, 1)

    def submit(self, pictures: npt.NDArray[Any], augmentation: Augmentation) -> ResidentPending:
        """Start a batch of n >= 1 pictures: `PICTURE` [n]."""
        chunks = range(0, len(pictures), _CHUNK)
        parts = [self._warp(pictures[at : at + _CHUNK], augmentation.part(at, at + _CHUNK)) for at in chunks]
        return ResidentPending(parts[0] if len(parts) == 1 else torch.cat(parts))

    def close(self) -> None:
        """Free the device's memory."""
        del self._data

    def _warp(self, pictures: npt.NDArray[Any], augmentation: Augmentation) -> Tensor:
        """uint8 [n, C, S, S]."""
        matrices = self._numbers(index_matrices(augmentation.matrices, augmentation.reductions), torch.float32)
        (a, b, c), (d, e, f) = (tuple(row.view(-1, 1, 1) for row in matrices[:, k].unbind(1)) for k in (0, 1))
        x = a * self._columns + b * self._rows + c
        y = d * self._columns + e * self._rows + f
        left, top = x.floor(), y.floor()
        right_share, low_share = (x - left).unsqueeze(1), (y - top).unsqueeze(1)
        places = [self._numbers(pictures[name], torch.int64).view(-1, 1, 1) for name in ("offset", "width", "height")]
        x0, y0 = left.long(), top.long()
        upper = self._sample(places, x0, y0).lerp(self._sample(places, x0 + 1, y0), right_share)
        lower = self._sample(places, x0, y0 + 1).lerp(self._sample(places, x0 + 1, y0 + 1), right_share)
        levels = upper.lerp_(lower, low_share).round_()
        gains, shifts = augmentation.gains, augmentation.shifts
        if (gains != 1).any() or (shifts != 0).any():
            gain, shift = (self._numbers(numbers, torch.float32).view(-1, 1, 1, 1) for numbers in (gains, shifts))
            levels = levels.mul_(gain).add_(255 * shift).clamp_(0, 255).round_()
        return levels.to(torch.uint8)

    def _sample(self, places: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Gray levels at whole pixels, 0 outside of the picture: float32 [n, C, S, S]."""
        offset, width, height = places
        channels = self._spec.channels
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        first = torch.where(inside, offset + (y * width + x) * channels, 0)
        found = torch.stack([self._data[first + channel] for channel in range(channels)], dim=1)
        return found.float() * inside.unsqueeze(1)

    def _numbers(self, values: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
        """A few numbers a picture, on the device."""
        host = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        if self._spec.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._spec.device, non_blocking=True)


@dataclass(frozen=True)
class ResidentPending:
    """A batch on its way through the device's stream."""

    images: Tensor

    def result(self) -> Tensor:
        """The batch, uint8 [n, C, S, S]."""
        return self.images

    def discard(self) -> None:
        """Nothing is to be taken back."""


_RESIDENTS: WeakValueDictionary[tuple[str, torch.device], Tensor] = WeakValueDictionary()
"""By file and device: the loaders of a run's splits share one."""


def _resident(pixels: Pixels, device: torch.device) -> Tensor:
    key = (str(pixels.path), device)
    found = _RESIDENTS.get(key)
    if found is None:
        found = _RESIDENTS[key] = _copy(pixels.data, device)
    return found


def _copy(data: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        if data.nbytes > free - _LEFT * whole:
            raise InputError(
                f"loader.cache=device: the decoded pictures take {readable_bytes(data.nbytes)}, but of this GPU's "
                f"{readable_bytes(whole)} half is left to the model, and {readable_bytes(free)} are free. Use "
                "loader.cache=pixels, which keeps them in the node's memory."
            )
    resident = torch.empty(len(data), dtype=torch.uint8, device=device)
    for start in range(0, len(data), _COPY_BYTES):
        resident[start : start + _COPY_BYTES] = torch.from_numpy(np.array(data[start : start + _COPY_BYTES]))
    return resident
