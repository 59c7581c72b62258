"""JPEG files as a list of segments (ITU-T T.81, annex B): header, metadata, and a lossless clean copy.

Owns what may stay in a packed JPEG: what decoding needs (tables, frame, scans, JFIF and Adobe headers) and the
orientation. No pixel is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from dataloading.packing.exif import EXIF_HEADER, build_exif, read_orientation
from dataloading.packing.parsed import Parsed, check_depth
from dataloading.packing.rejection import NOT_AN_IMAGE, TRUNCATED, RejectedError

__all__ = ["JPEG_MAGIC", "parse_jpeg"]

JPEG_MAGIC = b"\xff\xd8\xff"

_START, _END, _SCAN, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_JFIF, _ADOBE = 0xE0, 0xEE
_APPLICATION = range(0xE0, 0xF0)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # those three are tables and a reserved code
_READABLE_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; Huffman coded
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # not a stuffed byte, not a restart

# What an application segment is, by its number and first bytes.
_KINDS = (
    (0xE0, b"JFXX\0", "thumbnail"),
    (0xE1, b"Exif\0", "exif"),
    (0xE1, b"http://ns.adobe.com/", "xmp"),
    (0xE2, b"ICC_PROFILE\0", "icc"),
    (0xED, b"Photoshop", "iptc"),
)


class _Segment(NamedTuple):
    marker: int
    payload: bytes  # without marker and length
    scan: bytes  # entropy-coded data behind a start of scan

    def encode(self) -> bytes:
        length = (len(self.payload) + 2).to_bytes(2, "big")
        return bytes([0xFF, self.marker]) + length + self.payload + self.scan


def parse_jpeg(data: bytes) -> Parsed:
    """Header, orientation and metadata kinds of a JPEG, and the file without its metadata.

    Raises:
        RejectedError: truncated, broken structure, or a kind that OpenCV and DALI do not both read.
    """
    segments, end = _segments(data)
    width_px, height_px = _read_frame(segments)
    orientation = next((_orientation(segment) for segment in segments if _kind(segment) == "exif"), 1)
    kinds = {kind for segment in segments if (kind := _kind(segment))}
    if data[end:].strip(b"\0"):
        kinds.add("trailing")
    return Parsed("JPEG", width_px, height_px, orientation, tuple(sorted(kinds)), _clean(segments, orientation))


def _segments(data: bytes) -> tuple[list[_Segment], int]:
    """All segments between start and end of the image, and where that end is."""
    segments: list[_Segment] = []
    position = len(JPEG_MAGIC) - 1
    while True:
        marker, position = _read_marker(data, position)
        if marker == _END:
            return segments, position
        if marker in _STANDALONE:
            continue
        segment, position = _read_segment(data, marker, position)
        segments.append(segment)


def _read_marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at a position, and the position behind it; any number of 0xFF may stand before."""
    start = position
    while data[position : position + 1] == b"\xff":
        position += 1
    if position >= len(data):
        raise RejectedError(TRUNCATED)
    if position == start or data[position] in (0x00, _START):
        raise RejectedError("damaged (broken JPEG structure)")
    return data[position], position + 1


def _read_segment(data: bytes, marker: int, position: int) -> tuple[_Segment, int]:
    length = int.from_bytes(data[position : position + 2], "big")
    stop = position + length
    if stop > len(data) or position + 2 > len(data):
        raise RejectedError(TRUNCATED)
    if length < 2:
        raise RejectedError("damaged (broken JPEG structure)")
    payload = data[position + 2 : stop]
    if marker != _SCAN:
        return _Segment(marker, payload, b""), stop
    following = _MARKER_AFTER_SCAN.search(data, stop)
    if following is None:
        raise RejectedError(TRUNCATED)
    return _Segment(marker, payload, data[stop : following.start()]), following.start()


def _read_frame(segments: list[_Segment]) -> tuple[int, int]:
    """Width and height in pixels."""
    frame = next((segment for segment in segments if segment.marker in _FRAMES), None)
    if frame is None or len(frame.payload) < 6:
        raise RejectedError(f"{NOT_AN_IMAGE} (a JPEG without a frame)")
    bits, components = frame.payload[0], frame.payload[5]
    check_depth(bits)
    if components not in (1, 3):
        name = "CMYK" if components == 4 else f"{components} colour components"
        raise RejectedError(f"{name} (gray and RGB are readable)")
    if frame.marker not in _READABLE_FRAMES:
        raise RejectedError("lossless or arithmetic-coded JPEG (baseline and progressive are readable)")
    height_px, width_px = (int.from_bytes(frame.payload[start : start + 2], "big") for start in (1, 3))
    if not (width_px and height_px):
        raise RejectedError("damaged (a JPEG without width or height)")
    return width_px, height_px


def _kind(segment: _Segment) -> str | None:
    """Name of the metadata in a segment; None for what decoding needs."""
    if segment.marker == _COMMENT:
        return "comment"
    for marker, start, kind in _KINDS:
        if segment.marker == marker and segment.payload.startswith(start):
            return kind
    if segment.marker not in _APPLICATION or _is_needed_header(segment):
        return None
    return "application"


def _is_needed_header(segment: _Segment) -> bool:
    """Adobe's header says how the colours are coded; JFIF's that they are coded as usual."""
    return (segment.marker == _JFIF and segment.payload.startswith(b"JFIF\0")) or (
        segment.marker == _ADOBE and segment.payload.startswith(b"Adobe")
    )


def _orientation(segment: _Segment) -> int:
    return read_orientation(segment.payload[len(EXIF_HEADER) :])


def _clean(segments: list[_Segment], orientation: int) -> bytes:
    kept = [_without_thumbnail(segment) for segment in segments if _kind(segment) is None]
    if orientation != 1:
        behind_jfif = 1 if kept and kept[0].marker == _JFIF else 0
        kept.insert(behind_jfif, _Segment(0xE1, build_exif(orientation), b""))
    return b"".join(_encoded(kept))


def _encoded(segments: list[_Segment]) -> Iterator[bytes]:
    yield bytes([0xFF, _START])
    for segment in segments:
        yield segment.encode()
    yield bytes([0xFF, _END])


def _without_thumbnail(segment: _Segment) -> _Segment:
    """JFIF's header may carry a small copy of the picture, as it was before it was cropped or masked."""
    if segment.marker != _JFIF or len(segment.payload) <= 14:
        return segment
    return segment._replace(payload=segment.payload[:12] + b"\0\0")
