"""PNG files as a list of chunks (ISO/IEC 15948): header, metadata, and a lossless clean copy.

Owns what may stay in a packed PNG: the header, the pixels, the end. No pixel is decoded here.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from dataloading.packing.exif import read_orientation
from dataloading.packing.parsed import Parsed, check_depth
from dataloading.packing.rejection import NOT_AN_IMAGE, TRUNCATED, RejectedError

__all__ = ["PNG_MAGIC", "parse_png"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_GRAY, _RGB = 0, 2
_NEEDED = (b"IHDR", b"IDAT", b"IEND")
_KINDS = {b"tEXt": "text", b"zTXt": "text", b"iTXt": "text", b"eXIf": "exif", b"iCCP": "icc"}
_HARMLESS = {b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"bKGD", b"hIST", b"pHYs", b"sBIT", b"cICP"}


class _Chunk(NamedTuple):
    name: bytes
    payload: bytes
    raw: bytes  # length, name, payload and checksum


def parse_png(data: bytes) -> Parsed:
    """Header, orientation and metadata kinds of a PNG; its clean copy where it is plain 8-bit gray or RGB.

    Raises:
        RejectedError: truncated, damaged, animated, or 16 bits a channel.
    """
    chunks, end = _chunks(data)
    width_px, height_px, bits, colour = _read_header(chunks)
    by_name = {chunk.name: chunk.payload for chunk in chunks}
    if b"acTL" in by_name:
        raise RejectedError("more than one picture in the file")
    orientation = read_orientation(by_name.get(b"eXIf", b""))
    kinds = {kind for chunk in chunks if (kind := _kind(chunk))}
    if data[end:].strip(b"\0"):
        kinds.add("trailing")
    plain = bits == 8 and colour in (_GRAY, _RGB) and orientation == 1 and b"tRNS" not in by_name
    clean = PNG_MAGIC + b"".join(chunk.raw for chunk in chunks if chunk.name in _NEEDED) if plain else None
    return Parsed("PNG", width_px, height_px, orientation, tuple(sorted(kinds)), clean)


def _chunks(data: bytes) -> tuple[list[_Chunk], int]:
    """All chunks to the end of the image, and where that is."""
    chunks: list[_Chunk] = []
    position = len(PNG_MAGIC)
    while not chunks or chunks[-1].name != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        stop = position + 12 + length
        if stop > len(data) or position + 8 > len(data):
            raise RejectedError(TRUNCATED)
        raw = data[position:stop]
        chunks.append(_Chunk(raw[4:8], raw[8:-4], raw))
        _check_sum(chunks[-1])
        position = stop
    return chunks, position


def _check_sum(chunk: _Chunk) -> None:
    if chunk.name in _NEEDED and zlib.crc32(chunk.raw[4:-4]) != int.from_bytes(chunk.raw[-4:], "big"):
        raise RejectedError(f"damaged (wrong checksum of a PNG {chunk.name.decode('ascii')} chunk)")


def _read_header(chunks: list[_Chunk]) -> tuple[int, int, int, int]:
    """Width and height in pixels, bits a channel, colour type."""
    first = chunks[0]
    if first.name != b"IHDR" or len(first.payload) != 13:
        raise RejectedError(f"{NOT_AN_IMAGE} (a PNG without a header)")
    width_px, height_px = (int.from_bytes(first.payload[start : start + 4], "big") for start in (0, 4))
    if not (width_px and height_px):
        raise RejectedError("damaged (a PNG without width or height)")
    bits, colour = first.payload[8], first.payload[9]
    check_depth(bits)
    return width_px, height_px, bits, colour


def _kind(chunk: _Chunk) -> str | None:
    """Name of the metadata in a chunk; None for what decoding needs and for what describes colours."""
    if chunk.name == b"iTXt" and chunk.payload.startswith(b"XML:com.adobe.xmp"):
        return "xmp"
    if chunk.name in _NEEDED or chunk.name in _HARMLESS:
        return None
    return _KINDS.get(chunk.name, "application")
