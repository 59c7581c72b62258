"""The face that every executor of an augmentation shows, what it is given, and the geometry of a reduced decode.

An executor turns encoded pictures and the numbers of their draws into one uint8 batch. It decides nothing:
`augment` does. Several batches may be in flight; their results are taken in the order of submission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch

from dataloading.loading.augment import Augmentation

__all__ = [
    "Decoded",
    "Encoded",
    "Executor",
    "ExecutorSpec",
    "Pending",
    "Pictures",
    "UndecodableError",
    "index_matrices",
    "is_jpeg",
    "scaled_matrices",
]

Encoded = npt.NDArray[np.uint8]
"""The bytes of one picture as found in its shard, uint8 [bytes]; not to be written to."""

Decoded = npt.NDArray[np.uint8]
"""One picture as pixels, gray or RGB, at the scale 1/r of its draw's `reductions`: uint8 [h, w, C]; not to be written
to."""


class Pictures(Sequence[npt.NDArray[np.uint8]]):
    """Pictures that are looked up when they are asked for, by whoever works on that part of them.

    Args:
        records: what is known of each, a structured array [n].
        read: the pictures of some records, one after another.
    """

    def __init__(
        self,
        records: npt.NDArray[Any],
        read: Callable[[npt.NDArray[Any]], Iterator[npt.NDArray[np.uint8]]],
    ) -> None:
        self._records = records
        self._read = read

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> npt.NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, place: slice) -> Pictures: ...
    def __getitem__(self, place: int | slice) -> npt.NDArray[np.uint8] | Pictures:
        if isinstance(place, slice):
            return Pictures(self._records[place], self._read)
        return next(self._read(self._records[[place]]))

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return self._read(self._records)


class UndecodableError(Exception):
    """A picture cannot be decoded, or is not the one that the manifest describes.

    Args:
        position: of the picture in its batch; -1 where the library does not tell.
        reason: what the library says, one line.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ExecutorSpec:
    """What an executor needs to know before its first batch.

    `channels` are those of the dataset (1 gray, 3 RGB); `in_flight` is how many batches are submitted
    at most before the first is taken. `decoded` says that pictures come as `Decoded`, not as `Encoded`.
    """

    image_size: int
    channels: int
    threads: int
    in_flight: int
    device: torch.device
    decoded: bool = False


class Pending(Protocol):
    """A batch in the making."""

    def result(self) -> torch.Tensor:
        """The batch, uint8 [n, C, S, S]; waits for it.

        Raises:
            UndecodableError: a picture of it cannot be decoded.
        """

    def discard(self) -> None:
        """Give the batch up; it will not be asked for."""


class Executor(Protocol):
    """Something that decodes, warps and tones batches of pictures."""

    def submit(self, pictures: Any, augmentation: Augmentation) -> Pending:
        """Start a batch of n >= 1 pictures: a sequence of `Encoded` or `Decoded`, or where they lie on the device."""

    def close(self) -> None:
        """Stop threads and free memory; no batch is in flight any more."""


def is_jpeg(encoded: Encoded) -> bool:
    """Whether the bytes open like a JPEG, the one format that can be decoded at a reduced scale."""
    return len(encoded) > 2 and encoded[0] == 0xFF and encoded[1] == 0xD8


def scaled_matrices(matrices: npt.NDArray[np.float64], reductions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The matrices for pictures decoded at 1/r, still in pixel-centre coordinates: float64 [n, 2, 3].

    A pixel of a reduced picture covers exactly r x r of the full one.
    """
    return matrices / reductions[:, None, None]


def index_matrices(matrices: npt.NDArray[np.float64], reductions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """For OpenCV, which counts pixel centres from 0: T(-0.5) M T(+0.5), at the decoded scale."""
    scaled = scaled_matrices(matrices, reductions)
    scaled[:, :, 2] += 0.5 * (scaled[:, :, 0] + scaled[:, :, 1]) - 0.5
    return scaled
