"""How many pixels a packed picture claims to have, from its header, before anything makes room for them.

Knows the two formats that a data set holds, JPEG (ITU-T T.81, annex B) and PNG (ISO/IEC 15948), as strictly as
`pack` writes them: where a decoder might see another header than is seen here, there is no size. Decodes nothing.
"""

from __future__ import annotations

__all__ = ["PIXEL_LIMIT", "read_size"]

PIXEL_LIMIT = 1 << 28
"""Pixels of the largest picture that a data set may hold, 16,384 x 16,384: 0.8 GB when it is decoded in colour."""

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_JPEG_START = b"\xff\xd8"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # those three are tables and a reserved code
_SCAN = 0xDA
_ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # codes without a length; before the first scan none of them belongs
_FRAME_BYTES = 8  # length, bits, height, width, components


def read_size(encoded: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) in pixels as stored, before any orientation; None where it is no such JPEG or PNG."""
    data = memoryview(encoded)
    if data[: len(_PNG_START)] == _PNG_START:
        size = _number(data, 16, 4), _number(data, 20, 4)
    else:
        size = _jpeg_size(data) if data[:2] == _JPEG_START else (0, 0)
    return size if all(size) else None


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """(0, 0) where there is not exactly one frame before the first scan."""
    found: list[tuple[int, int]] = []
    position = len(_JPEG_START)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], _number(data, position + 2, 2)
        if marker == _SCAN:
            return found[0] if len(found) == 1 else (0, 0)
        if marker in _ALONE or length < 2:
            break
        if marker in _FRAMES and length >= _FRAME_BYTES:
            found.append((_number(data, position + 7, 2), _number(data, position + 5, 2)))
        position += 2 + length
    return 0, 0


def _number(data: memoryview, start: int, num_bytes: int) -> int:
    """0 behind the end."""
    return int.from_bytes(data[start : start + num_bytes], "big")
