"""The executor on CPU threads: OpenCV decodes, warps and tones each picture straight into the batch's memory.

Knows the numbers of an augmentation, not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from dataloading.loading.augment import Augmentation
from dataloading.loading.executor import (
    Decoded,
    Encoded,
    ExecutorSpec,
    UndecodableError,
    index_matrices,
    is_jpeg,
)

__all__ = ["OpenCVExecutor", "decode"]

_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_DECODE = {
    (1, 1): cv2.IMREAD_GRAYSCALE,
    (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
    (3, 1): cv2.IMREAD_COLOR_BGR,
    (3, 2): cv2.IMREAD_REDUCED_COLOR_2,
    (3, 4): cv2.IMREAD_REDUCED_COLOR_4,
    (3, 8): cv2.IMREAD_REDUCED_COLOR_8,
}
"""Flags by (channels, reduction); colour comes as BGR and is turned after the warp, where it is small."""


class OpenCVExecutor:
    """Decodes on a pool of threads; OpenCV lets go of the interpreter lock while it works.

    OpenCV's own threads are switched off for the whole process: pictures are the unit of parallel work here,
    and pools inside pools only fight.
    """

    def __init__(self, spec: ExecutorSpec) -> None:
        cv2.setNumThreads(1)
        self._spec = spec
        self._pool = ThreadPoolExecutor(spec.threads, thread_name_prefix="opencv")

    def submit(self, pictures: Sequence[Encoded | Decoded], augmentation: Augmentation) -> OpenCVPending:
        """Start a batch on the pool, in one chunk a thread."""
        images = self._empty_batch(len(pictures))
        pixels = images.numpy()
        execute = _execute_decoded if self._spec.decoded else _execute
        chunk = -(-len(pictures) // self._spec.threads)
        futures = [
            self._pool.submit(
                execute,
                pictures[start : start + chunk],
                augmentation.part(start, start + chunk),
                pixels[start : start + chunk],
                start,
            )
            for start in range(0, len(pictures), chunk)
        ]
        return OpenCVPending(images.permute(0, 3, 1, 2), futures)

    def close(self) -> None:
        """Stop the threads; what is queued is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _empty_batch(self, count: int) -> torch.Tensor:
        size, channels = self._spec.image_size, self._spec.channels
        pinned = self._spec.device.type == "cuda"
        return torch.empty(count, size, size, channels, dtype=torch.uint8, pin_memory=pinned)


@dataclass(frozen=True)
class OpenCVPending:
    """A batch whose chunks are being written."""

    images: torch.Tensor
    futures: list[Future[None]]

    def result(self) -> torch.Tensor:
        """The batch, uint8 [n, C, S, S] (RGB lies in channels-last memory)."""
        for future in reversed(self.futures):  # the last to begin first: each wake takes the lock from those at work
            future.exception()
        for future in self.futures:
            future.result()
        return self.images

    def discard(self) -> None:
        """Take back the chunks that no thread has begun."""
        for future in self.futures:
            future.cancel()


_Numbers = tuple[npt.NDArray[np.float64], int, int, int, float, float]
"""One picture's matrix (float64 [2, 3], as `index_matrices`), reduction, height and width at that scale, gain, and
shift in gray levels."""


def _numbers(augmentation: Augmentation) -> Iterator[_Numbers]:
    matrices, gains, shifts, reductions, widths, heights = augmentation
    columns = (reductions, -(-heights // reductions), -(-widths // reductions), gains, 255 * shifts)
    return zip(index_matrices(matrices, reductions), *(column.tolist() for column in columns), strict=True)


def _execute(encoded: Sequence[Encoded], augmentation: Augmentation, pixels: Encoded, first: int) -> None:
    """Fill `pixels`, uint8 [n, S, S, C]; `first` is the chunk's position in its batch.

    Each picture is read when its turn comes, so that its bytes are still in the cache when it is decoded.
    """
    channels = pixels.shape[3]
    for number, (data, numbers, target) in enumerate(zip(encoded, _numbers(augmentation), pixels, strict=True)):
        matrix, reduction, height, width, gain, shift = numbers
        if reduction > 1 and not is_jpeg(data):
            (numbers,) = _numbers(augmentation.part(number, number + 1)._replace(reductions=np.ones(1, np.int64)))
            matrix, reduction, height, width, gain, shift = numbers
        picture = decode(data, channels, reduction, first + number)
        if picture.shape[:2] != (height, width):
            raise UndecodableError(first + number, _describe_size(picture, augmentation, number, reduction))
        _warp(picture, target, matrix)
        if channels == 3:
            cv2.cvtColor(target, cv2.COLOR_BGR2RGB, target)
        _tone(target, gain, shift)


def _execute_decoded(pictures: Sequence[Decoded], augmentation: Augmentation, pixels: Encoded, first: int) -> None:
    """`_execute` for pictures that are decoded already, and RGB."""
    for picture, (matrix, *_, gain, shift), target in zip(pictures, _numbers(augmentation), pixels, strict=True):
        _warp(picture, target, matrix)
        _tone(target, gain, shift)


def decode(data: Encoded, channels: int, reduction: int, position: int) -> Decoded:
    """A picture at 1/1, or a JPEG at 1/2, 1/4 or 1/8: uint8 [h, w] gray or [h, w, 3] BGR.

    Raises:
        UndecodableError: OpenCV cannot decode it; `position` is whose it is.
    """
    try:
        picture: Any = cv2.imdecode(data, _DECODE[channels, reduction])
    except cv2.error as error:
        raise UndecodableError(position, str(error).strip().splitlines()[-1]) from None
    if picture is None:
        raise UndecodableError(position, "OpenCV cannot decode it")
    decoded: Decoded = picture
    return decoded


def _describe_size(picture: Decoded, augmentation: Augmentation, number: int, reduction: int) -> str:
    found = f"{picture.shape[1]} x {picture.shape[0]} pixels at scale 1/{reduction}"
    return f"it has {found}, but the manifest says {augmentation.widths[number]} x {augmentation.heights[number]}"


def _warp(picture: Decoded, target: Encoded, matrix: npt.NDArray[np.float64]) -> None:
    cv2.warpAffine(picture, matrix, target.shape[:2], target, _WARP)


def _tone(target: Encoded, gain: float, shift: float) -> None:
    """Gain times the pixels plus the shift, in place, rounded, within 0 and 255; half of a table's time for gray."""
    if (gain, shift) != (1, 0):
        cv2.addWeighted(target, gain, target, 0, shift, target)
