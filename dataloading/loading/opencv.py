"""The executor on CPU threads: OpenCV decodes, warps and tones each picture straight into the batch's memory.

Knows the numbers of an augmentation, not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
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

_CHUNKS_PER_THREAD = 2  # of several, so that the last chunk of a batch leaves none idle for long
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
        """Start a batch on the pool, in chunks."""
        images = self._empty_batch(len(pictures))
        pixels = images.numpy()
        execute = _execute_decoded if self._spec.decoded else _execute
        num_chunks = self._spec.threads * _CHUNKS_PER_THREAD if self._spec.threads > 1 else 1
        chunk = -(-len(pictures) // num_chunks)
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
        for future in self.futures:
            future.result()
        return self.images

    def discard(self) -> None:
        """Take back the chunks that no thread has begun."""
        for future in self.futures:
            future.cancel()


def _execute(encoded: Sequence[Encoded], augmentation: Augmentation, pixels: Encoded, first: int) -> None:
    """Fill `pixels`, uint8 [n, S, S, C]; `first` is the chunk's position in its batch."""
    encoded = list(encoded)  # read here, by one thread of many
    reductions = [int(r) if is_jpeg(data) else 1 for data, r in zip(encoded, augmentation.reductions, strict=True)]
    matrices, tones = index_matrices(augmentation.matrices, np.array(reductions)), _tones(augmentation)
    for number, data in enumerate(encoded):
        picture = decode(data, pixels.shape[3], reductions[number], first + number)
        _check_size(picture, augmentation, number, reductions[number], first)
        _warp(picture, matrices[number], pixels[number])
        if pixels.shape[3] == 3:
            cv2.cvtColor(pixels[number], cv2.COLOR_BGR2RGB, dst=pixels[number])
        _tone(pixels[number], *tones[number])


def _execute_decoded(pictures: Sequence[Decoded], augmentation: Augmentation, pixels: Encoded, first: int) -> None:
    """`_execute` for pictures that are decoded already, and RGB."""
    matrices, tones = index_matrices(augmentation.matrices, augmentation.reductions), _tones(augmentation)
    for number, picture in enumerate(pictures):
        _warp(picture, matrices[number], pixels[number])
        _tone(pixels[number], *tones[number])


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


def _check_size(picture: Decoded, augmentation: Augmentation, number: int, reduction: int, first: int) -> None:
    width, height = int(augmentation.widths[number]), int(augmentation.heights[number])
    if picture.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        found = f"{picture.shape[1]} x {picture.shape[0]} pixels at scale 1/{reduction}"
        raise UndecodableError(first + number, f"it has {found}, but the manifest says {width} x {height}")


def _warp(picture: Decoded, matrix: npt.NDArray[np.float64], pixels: Encoded) -> None:
    size = pixels.shape[0]
    cv2.warpAffine(picture, matrix, (size, size), dst=pixels, flags=_WARP)


def _tones(augmentation: Augmentation) -> list[tuple[float, float]]:
    """Gains, and shifts in gray levels."""
    return list(zip(augmentation.gains.tolist(), (255 * augmentation.shifts).tolist(), strict=True))


def _tone(pixels: Encoded, gain: float, shift: float) -> None:
    """Gain times the pixels plus the shift, in place, rounded, within 0 and 255; half of a table's time for gray."""
    if (gain, shift) != (1, 0):
        cv2.addWeighted(pixels, gain, pixels, 0, shift, dst=pixels)
