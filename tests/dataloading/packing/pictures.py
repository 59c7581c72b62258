"""Small pictures and files for the packing tests, made from numbers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dataloading.packing.exif import build_exif

Picture = npt.NDArray[np.uint8]


def draw(seed: int, width_px: int = 48, height_px: int = 32) -> Picture:
    """A smooth random gray picture, uint8 [height, width], unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9), np.uint8)
    return cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)


def draw_colour(seed: int) -> Picture:
    """A picture with three unlike channels, uint8 [32, 48, 3]."""
    return np.stack([draw(seed), draw(seed + 1000), draw(seed + 2000)], axis=2)


def encode(suffix: str, picture: Picture) -> bytes:
    """The picture in the format of a suffix such as `.jpg`."""
    written, data = cv2.imencode(suffix, picture)
    assert written
    return data.tobytes()


def decode(data: bytes, flag: int = cv2.IMREAD_UNCHANGED) -> Picture:
    """What OpenCV makes of the bytes."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag)


def jpeg_segment(marker: int, payload: bytes) -> bytes:
    """A JPEG segment with marker and length."""
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """The JPEG with segments put behind its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def turned(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF block that holds an orientation, and a name."""
    return with_segments(jpeg, jpeg_segment(0xE1, build_exif(orientation) + b"Jane Doe"))


def png_chunk(name: bytes, payload: bytes) -> bytes:
    """A PNG chunk with length and checksum."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """The PNG with chunks put behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def write(path: Path, data: bytes) -> None:
    """Write a file and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_set(root: Path, classes: tuple[str, ...] = ("A", "B"), count: int = 4, prefix: str = "") -> None:
    """`count` pictures of each class under `root/prefix`, named by OCT2017's rule, two of each patient."""
    for label, name in enumerate(classes):
        for number in range(count):
            patient = 100 * label + number // 2
            seed = 10_000 * label + number + 77 * len(prefix)
            write(root / prefix / name / f"{name}-{patient}-{number}.jpeg", encode(".jpg", draw(seed)))
