"""One image file, verified: decoded once and fully, cleaned of metadata, measured.

Owns what is readable and the reasons for what is not. What comes out decodes in OpenCV and in DALI: JPEG and
plain 8-bit PNG as they are, everything else as an 8-bit PNG. Knows nothing of labels, patients or shards.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from dataloading.packing.jpeg import JPEG_MAGIC, parse_jpeg
from dataloading.packing.native_messages import native_messages
from dataloading.packing.parsed import Parsed, check_depth
from dataloading.packing.png import PNG_MAGIC, parse_png
from dataloading.packing.rejection import NOT_AN_IMAGE, RejectedError

__all__ = ["FILE_LIMIT_BYTES", "IMAGE_SUFFIXES", "Picture", "ReadImage", "is_coloured", "read_file", "read_image"]

Picture = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"})

FILE_LIMIT_BYTES = 1 << 30
"""Of an image file: more than the largest picture has, uncompressed, in any format that is read."""

_OTHER_FORMATS = ("BMP", "TIFF", "WEBP", "GIF")
_GRAY_MODES, _COLOUR_MODES = ("1", "L", "LA"), ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr")
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression", "libpng error")
_COLOUR_TOLERANCE = 8  # levels between channels that JPEG's rounding can make of a gray picture
_BITS_PER_SAMPLE = 258
# TIFF tags that can name a person: description, make, model, software, date, artist, host, XMP, IPTC, EXIF.
_TIFF_KINDS = {**dict.fromkeys((270, 271, 272, 305, 306, 315, 316), "text"), 700: "xmp", 33723: "iptc", 34665: "exif"}
# What Pillow raises on files that are not what they say; it has no common class for them.
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class ReadImage:
    """A verified file.

    Attributes:
        data: the bytes to pack.
        pixels: uint8 [height, width], or [height, width, 3] in OpenCV's order (BGR), turned upright.
        parsed: what the file's header said, before it was turned.
    """

    data: bytes
    pixels: Picture
    parsed: Parsed


def read_file(path: Path) -> bytes:
    """The bytes of an image file, if it is not larger than one can be.

    Raises:
        RejectedError: it is.
        OSError: it cannot be read.
    """
    num_bytes = path.stat().st_size
    if num_bytes > FILE_LIMIT_BYTES:
        raise RejectedError(f"too large a file ({num_bytes:,} bytes, and {FILE_LIMIT_BYTES:,} are the most)")
    return path.read_bytes()


def read_image(data: bytes, max_pixels: int) -> ReadImage:
    """Verify a file by its content; its name does not count.

    Args:
        data: the file as found.
        max_pixels: more are refused from the header, before anything is decoded.

    Raises:
        RejectedError: with the reason.
    """
    if not data:
        raise RejectedError("empty file (0 bytes)")
    if data.startswith(JPEG_MAGIC):
        parsed = parse_jpeg(data)
    elif data.startswith(PNG_MAGIC):
        parsed = parse_png(data)
    else:
        return _read_other(data, max_pixels)
    _check_size(parsed.width_px, parsed.height_px, max_pixels)
    clean = parsed.clean if parsed.clean is not None else _rewrite(data, parsed.format)
    return ReadImage(clean, _decode(clean), parsed)


def is_coloured(pixels: Picture) -> bool:
    """Whether channels differ by more than JPEG's rounding makes of gray."""
    if pixels.ndim == 2:
        return False
    blue, green, red = cv2.split(pixels)
    pairs = ((blue, green), (green, red), (red, blue))
    return any(int(cv2.absdiff(one, other).max()) > _COLOUR_TOLERANCE for one, other in pairs)


def _check_size(width_px: int, height_px: int, max_pixels: int) -> None:
    if width_px * height_px > max_pixels:
        raise RejectedError(f"too many pixels ({width_px} x {height_px}, and pack.max_pixels is {max_pixels:,})")


def _decode(clean: bytes) -> Picture:
    """Pixels of what is packed; gray stays one channel. Any word of damage from the decoder is a refusal."""
    try:
        with native_messages() as messages:
            pixels = cv2.imdecode(np.frombuffer(clean, np.uint8), cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise RejectedError(f"cannot be decoded ({error.err})") from None
    damage = next((line for line in messages if any(word in line for word in _DAMAGE)), None)
    if damage is not None:
        raise RejectedError(f"damaged ({damage.strip()})")
    if pixels is None:
        raise RejectedError("cannot be decoded")
    return cast(Picture, pixels)


def _read_other(data: bytes, max_pixels: int) -> ReadImage:
    with _opened(data, _OTHER_FORMATS) as image:
        parsed = _parse_opened(image)
        _check_size(parsed.width_px, parsed.height_px, max_pixels)
        clean = _to_png(image)
    return ReadImage(clean, _decode(clean), parsed)


def _rewrite(data: bytes, format_name: str) -> bytes:
    with _opened(data, (format_name,)) as image:
        return _to_png(image)


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The picture in Pillow; what Pillow raises in the block becomes a refusal."""
    Image.MAX_IMAGE_PIXELS = None  # pack.max_pixels is the limit, and it is checked from the header
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=formats) as image:
            yield image
    except UnidentifiedImageError:
        raise RejectedError(NOT_AN_IMAGE) from None
    except _PILLOW_ERRORS as error:
        raise RejectedError(f"truncated or damaged ({' '.join(str(error).split())})") from None


def _parse_opened(image: Image.Image) -> Parsed:
    if getattr(image, "n_frames", 1) > 1:
        raise RejectedError("more than one picture in the file")
    return Parsed(
        format=str(image.format),
        width_px=image.width,
        height_px=image.height,
        orientation=int(image.getexif().get(0x0112, 1)),
        metadata=tuple(sorted(_metadata_kinds(image))),
        clean=None,
    )


def _metadata_kinds(image: Image.Image) -> set[str]:
    tags = dict(image.getexif()) if image.format == "TIFF" else {}
    kinds = {_TIFF_KINDS[tag] for tag in tags if tag in _TIFF_KINDS}
    names = {"exif": "exif", "xmp": "xmp", "comment": "comment", "icc_profile": "icc"}
    return kinds | {kind for name, kind in names.items() if image.info.get(name) and image.format != "TIFF"}


def _to_png(image: Image.Image) -> bytes:
    """The picture, upright, as 8-bit gray or RGB; transparency is dropped."""
    _check_mode(image)
    upright = ImageOps.exif_transpose(image)
    pixels = np.asarray(upright.convert("L" if upright.mode in _GRAY_MODES else "RGB"))
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    written, png = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels))
    assert written, "OpenCV writes any 8-bit picture"
    return bytes(png.tobytes())


def _check_mode(image: Image.Image) -> None:
    if image.mode == "CMYK":
        raise RejectedError("CMYK (gray and RGB are readable)")
    if image.mode == "F" or image.mode.startswith("I"):
        check_depth(32 if image.mode in ("F", "I") else 16)
    if image.format == "TIFF":
        bits = image.getexif().get(_BITS_PER_SAMPLE, 8)
        check_depth(max(bits) if isinstance(bits, tuple) else int(bits))
    if image.mode not in (*_GRAY_MODES, *_COLOUR_MODES):
        raise RejectedError(f"colour mode {image.mode} (gray and RGB are readable)")
