"""What a worker finds in one file: its identity, its measures, and the bytes to pack.

The unit of work of packing; runs in a process of its own and returns plain values. Knows nothing of labels,
splits or shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from dataloading.packing.images import Picture, ReadImage, is_coloured, read_file, read_image
from dataloading.packing.likeness import build_thumbnail, perceptual_hash
from dataloading.packing.masks import read_mask
from dataloading.packing.pixel_sums import PixelSums, sum_pixels
from dataloading.packing.rejection import RejectedError

__all__ = ["Examined", "Facts", "Task", "examine_files"]


@dataclass(frozen=True, slots=True)
class Task:
    """One image file, and its mask where there is one."""

    path: Path
    mask: Path | None
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of a file when its bytes are written.

    `width_px` and `height_px` are after orientation; `num_bytes` and `sha256` of the file as found;
    `packed_as` is the format of the packed bytes, `format` that of the file.
    """

    width_px: int
    height_px: int
    num_bytes: int
    sha256: str
    phash: int
    mirrored_phash: int
    coloured: bool
    orientation: int
    metadata: tuple[str, ...]
    format: str
    rewritten: bool
    mask_sha256: str | None
    mask_problem: str | None


@dataclass(frozen=True, slots=True)
class Examined:
    """A file that can be packed."""

    facts: Facts
    image: bytes
    mask: bytes | None
    thumbnail: bytes
    gray_sums: PixelSums
    colour_sums: PixelSums


def examine_files(tasks: Sequence[Task]) -> list[Examined | str]:
    """Each file examined, or the reason why it cannot be packed."""
    return [_examine(task) for task in tasks]


def _examine(task: Task) -> Examined | str:
    try:
        data = read_file(task.path)
        image = read_image(data, task.max_pixels)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except RejectedError as error:
        return str(error)
    return _measure(task, data, image)


def _measure(task: Task, data: bytes, image: ReadImage) -> Examined:
    pixels = image.pixels
    gray = pixels if pixels.ndim == 2 else cast(Picture, cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))
    height_px, width_px = gray.shape
    mask, problem = _examine_mask(task.mask, width_px, height_px)
    thumbnail = build_thumbnail(gray)
    gray_sums = sum_pixels(gray)
    facts = Facts(
        width_px=width_px,
        height_px=height_px,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(thumbnail),
        mirrored_phash=perceptual_hash(np.ascontiguousarray(thumbnail[:, ::-1])),
        coloured=is_coloured(pixels),
        orientation=image.parsed.orientation,
        metadata=image.parsed.metadata,
        format=image.parsed.format,
        rewritten=image.parsed.clean is None,
        mask_sha256=hashlib.sha256(mask).hexdigest() if mask is not None else None,
        mask_problem=problem,
    )
    colour_sums = gray_sums.repeated(3) if pixels.ndim == 2 else sum_pixels(pixels[:, :, ::-1])
    return Examined(facts, image.data, mask, thumbnail.tobytes(), gray_sums, colour_sums)


def _examine_mask(path: Path | None, width_px: int, height_px: int) -> tuple[bytes | None, str | None]:
    """(bytes to pack, None), (None, what is wrong), or (None, None) where there is no mask."""
    if path is None:
        return None, None
    try:
        return read_mask(read_file(path), width_px, height_px), None
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except RejectedError as error:
        return None, str(error)
