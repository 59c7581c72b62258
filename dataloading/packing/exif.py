"""EXIF orientation, the one thing in EXIF that the picture needs: reading it, and writing it alone.

Knows the TIFF structure that EXIF is written in (Exif 2.32, section 4.6), nothing of the file around it.
"""

from __future__ import annotations

import struct

__all__ = ["EXIF_HEADER", "build_exif", "read_orientation"]

EXIF_HEADER = b"Exif\0\0"

_ORIENTATION = 0x0112
_SHORT = 3
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}


def read_orientation(tiff: bytes) -> int:
    """The orientation, 1 to 8; 1 (upright) where there is none or it makes no sense."""
    order = _BYTE_ORDERS.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(num_entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if (tag, kind, count) == (_ORIENTATION, _SHORT, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:  # points outside the block
        return 1
    return 1


def build_exif(orientation: int) -> bytes:
    """An EXIF block, with its header, that holds an orientation and nothing else."""
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", _ORIENTATION, _SHORT, 1, orientation, 0)
    return EXIF_HEADER + tiff + struct.pack("<I", 0)
