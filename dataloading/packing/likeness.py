"""Which pictures show the same: nominated by a perceptual hash, confirmed by a second look.

A hash alone pairs pictures that are only of one kind: on 644 chest X-rays a difference hash within 4 bits
pairs 359 images of different patients. So a pair counts only if small copies of the two pictures correlate.
Mirror images are looked for too. Knows pixels and numbers, no files and no patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["THUMBNAIL_PX", "NearDuplicates", "build_thumbnail", "find_near_duplicates", "perceptual_hash"]

Picture = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

THUMBNAIL_PX = 64
MIN_CORRELATION = 0.98

_HASH_SIDE = 8
_DCT_SIDE = 32
_MAX_BITS = 6  # two hashes this close nominate a pair
_MAX_NEIGHBOURS = 4096  # compared with each picture in a bucket of the search
_PAIRS_A_LOOK = 2048  # thumbnails in memory at a time

# Hashes that differ in at most 6 bits agree in at least one of 7 bands.
_BANDS = [np.uint64(sum(1 << int(bit) for bit in bits)) for bits in np.array_split(np.arange(64), _MAX_BITS + 1)]


@dataclass(frozen=True)
class NearDuplicates:
    """Confirmed pairs.

    Attributes:
        pairs: places of the two pictures, first < second: int64 [n, 2].
        mirrored: whether one is the mirror image of the other: bool [n].
        num_nominated: pairs that the hash named.
        complete: False where so many hashes agreed that not all were compared.
    """

    pairs: Indices
    mirrored: Flags
    num_nominated: int
    complete: bool


def build_thumbnail(gray: Picture) -> Picture:
    """A small copy, stretched to a square: uint8 [64, 64] from uint8 [height, width]."""
    return cast(Picture, cv2.resize(gray, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA))


def perceptual_hash(thumbnail: Picture) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies (DCT) lie above their median (pHash, Zauner 2010)."""
    small = cv2.resize(thumbnail, (_DCT_SIDE, _DCT_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_HASH_SIDE, :_HASH_SIDE].ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


def find_near_duplicates(
    hashes: Words,
    mirrored_hashes: Words,
    thumbnails_of: Callable[[Indices], Picture],
    progress: Callable[[int, int], None] | None = None,
) -> NearDuplicates:
    """Pairs of pictures that show the same, mirrored ones too.

    Args:
        hashes: of the pictures, uint64 [n].
        mirrored_hashes: of their mirror images, uint64 [n].
        thumbnails_of: small copies, uint8 [k, 64, 64], of the pictures at k places.
        progress: called with (bands searched, bands in all).
    """
    search = _Search(hashes, mirrored_hashes)
    pairs, flags = [np.empty((0, 2), np.int64)], [np.empty(0, np.bool_)]
    for band in range(len(_BANDS)):
        for first, second, mirrored in search.nominate(band):
            same = _look(thumbnails_of, first, second, mirrored)
            pairs.append(np.stack([first[same], second[same]], axis=1))
            flags.append(mirrored[same])
        if progress:
            progress(band + 1, len(_BANDS))
    return NearDuplicates(np.concatenate(pairs), np.concatenate(flags), search.num_nominated, search.complete)


class _Search:
    """Pairs of close hashes, each named once; counts what it names.

    The pictures' hashes and, behind them, those of their mirror images are sorted by one band of bits; only
    neighbours in the same bucket are compared.
    """

    def __init__(self, hashes: Words, mirrored_hashes: Words) -> None:
        self._words = np.concatenate([hashes, mirrored_hashes]).astype(np.uint64)
        self._num_pictures = len(hashes)
        self.num_nominated = 0
        self.complete = True

    def nominate(self, band: int) -> Iterator[tuple[Indices, Indices, Flags]]:
        """(first, second, mirrored) of pairs that agree in this band and in none before it."""
        keys = self._words & _BANDS[band]
        order = np.lexsort((self._words, keys))
        ends = np.searchsorted(keys[order], keys[order], side="right")
        active = np.arange(len(order))
        for step in range(1, _MAX_NEIGHBOURS + 1):
            active = active[active + step < ends[active]]
            if not active.size:
                return
            yield from self._close_pairs(band, order[active], order[active + step])
        self.complete = False

    def _close_pairs(self, band: int, one: Indices, other: Indices) -> Iterator[tuple[Indices, Indices, Flags]]:
        different = self._words[one] ^ self._words[other]
        close = np.bitwise_count(different) <= _MAX_BITS
        for earlier in _BANDS[:band]:
            close &= (different & earlier) != 0
        low, high = np.minimum(one, other)[close], np.maximum(one, other)[close]
        mirrored = high >= self._num_pictures
        second = np.where(mirrored, high - self._num_pictures, high)
        # A mirrored pair is met twice, (i, mirror of j) and (j, mirror of i): the first stands for both.
        kept = low < second
        if kept.any():
            self.num_nominated += int(kept.sum())
            yield low[kept], second[kept], mirrored[kept]


def _look(thumbnails_of: Callable[[Indices], Picture], first: Indices, second: Indices, mirrored: Flags) -> Flags:
    """Whether the small copies correlate: bool [n]."""
    same = np.zeros(len(first), np.bool_)
    for start in range(0, len(first), _PAIRS_A_LOOK):
        part = slice(start, start + _PAIRS_A_LOOK)
        others = thumbnails_of(second[part])
        others = np.where(mirrored[part, None, None], others[:, :, ::-1], others)
        same[part] = _correlation(thumbnails_of(first[part]), others) > MIN_CORRELATION
    return same


def _correlation(ones: Picture, others: Picture) -> Floats:
    """Pearson's, pair by pair; 0 for a picture without contrast: float32 [n]."""
    a, b = (_centred(pictures) for pictures in (ones, others))
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    product = (a * b).sum(axis=1)
    return cast(Floats, np.divide(product, scale, out=np.zeros_like(product), where=scale > 0))


def _centred(pictures: Picture) -> Floats:
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    return cast(Floats, flat - flat.mean(axis=1, keepdims=True))
