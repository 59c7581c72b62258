"""What a format's reader says of a file before any pixel is decoded.

Owns the record that JPEG, PNG and the other formats share, and the names of the metadata kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataloading.packing.rejection import RejectedError

__all__ = ["Parsed", "check_depth"]


@dataclass(frozen=True)
class Parsed:
    """A file's header, and the file without what the picture does not need.

    `width_px` and `height_px` are as stored, before `orientation` (1 to 8, EXIF) is applied. `metadata` names the
    kinds that were found: exif, xmp, iptc, comment, text, icc, thumbnail, application, trailing. `clean` is
    None where the file cannot be packed as it is and its pixels must be written anew.
    """

    format: str
    width_px: int
    height_px: int
    orientation: int
    metadata: tuple[str, ...]
    clean: bytes | None


def check_depth(bits: int) -> None:
    """Refuse what is not 8 bits a channel: readers scale deeper pictures each in its own way.

    Raises:
        RejectedError: more than 8 bits.
    """
    if bits > 8:
        raise RejectedError(f"{bits} bits a channel (8 are readable; rescale it first)")
