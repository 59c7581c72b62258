"""Rules of verification: what is readable, what is refused, and what of a file is packed."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dataloading.packing.exif import build_exif, read_orientation
from dataloading.packing.images import ReadImage, is_coloured, read_image
from dataloading.packing.masks import read_mask
from dataloading.packing.pixel_sums import PixelSums, sum_pixels
from dataloading.packing.rejection import RejectedError
from tests.dataloading.packing.pictures import (
    decode,
    draw,
    draw_colour,
    encode,
    jpeg_segment,
    png_chunk,
    turned,
    with_chunks,
    with_segments,
)

GRAY_JPEG = encode(".jpg", draw(1))
COLOUR_JPEG = encode(".jpg", draw_colour(1))
GRAY_PNG = encode(".png", draw(1))


def read(data: bytes) -> ReadImage:
    """Read with a limit that no test picture meets."""
    return read_image(data, max_pixels=1_000_000)


def save(mode: str, format_name: str, **options: object) -> bytes:
    """A picture of a Pillow mode in a format."""
    stream = io.BytesIO()
    Image.fromarray(draw(1)).convert(mode).save(stream, format_name, **options)
    return stream.getvalue()


def damaged_jpeg() -> bytes:
    """A JPEG whose compressed pixels end early, though the file has its end."""
    data = encode(".jpg", draw(2, 480, 320))
    return data[: len(data) // 2] + data[-2:]


@pytest.mark.parametrize("data", [GRAY_JPEG, COLOUR_JPEG, GRAY_PNG, encode(".png", draw_colour(1))])
def test_plain_jpeg_and_png_are_packed_as_they_are(data: bytes) -> None:
    """A plain file's compressed pixels are not touched, and decode as before."""
    image = read(data)
    assert decode(data).tobytes() == decode(image.data).tobytes() == image.pixels.tobytes()
    assert len(image.data) <= len(data)


@pytest.mark.parametrize("cut", [1, 2, 10, 100, 400])
@pytest.mark.parametrize("data", [GRAY_JPEG, COLOUR_JPEG, GRAY_PNG])
def test_truncated_files_are_refused(data: bytes, cut: int) -> None:
    """A file that lost its end is refused, however little is missing; OpenCV alone decodes it with gray fill."""
    with pytest.raises(RejectedError, match="truncated"):
        read(data[:-cut])


def test_truncated_inside_a_thumbnail_is_found() -> None:
    """The end of an EXIF thumbnail is not taken for the end of the picture."""
    data = with_segments(GRAY_JPEG, jpeg_segment(0xE1, build_exif(1) + GRAY_JPEG))
    with pytest.raises(RejectedError, match="truncated"):
        read(data[:-20])


def test_damaged_pixels_are_refused() -> None:
    """Pixels that a decoder would make up are noticed: by the decoder's own warning, or by a checksum."""
    with pytest.raises(RejectedError, match=r"damaged \(Corrupt JPEG data"):
        read(damaged_jpeg())
    with pytest.raises(RejectedError, match=r"damaged \(wrong checksum of a PNG IDAT chunk"):
        read(GRAY_PNG[:60] + b"\0" + GRAY_PNG[61:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not a picture at all", "not an image"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (save("CMYK", "JPEG"), "CMYK"),
        (save("CMYK", "TIFF"), "CMYK"),
        (encode(".png", draw(1).astype(np.uint16) * 256), "16 bits a channel"),
        (encode(".tiff", draw(1).astype(np.uint16) * 256), "16 bits a channel"),
        (encode(".tiff", draw_colour(1).astype(np.uint16) * 256), "16 bits a channel"),
        (save("L", "GIF", save_all=True, append_images=[Image.fromarray(draw(2))]), "more than one picture"),
        (save("L", "TIFF")[:-300], "truncated or damaged"),
        (GRAY_JPEG[:20] + b"junk" + GRAY_JPEG[24:], "damaged"),
    ],
)
def test_unreadable_files_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    """Each kind of file that is not readable is named in plain words."""
    with pytest.raises(RejectedError, match=reason):
        read(data)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff"])
def test_too_many_pixels_are_refused_from_the_header(suffix: str) -> None:
    """The size is checked before a pixel is decoded: compressed data that is cut off does not matter."""
    data = encode(suffix, draw(1, 100, 100))
    with pytest.raises(RejectedError, match=r"too many pixels \(100 x 100, and pack.max_pixels is 9,999\)"):
        read_image(data, max_pixels=9_999)
    assert (100, 100) == read_image(data, max_pixels=10_000).pixels.shape


@pytest.mark.parametrize("format_name", ["BMP", "TIFF", "WEBP", "GIF"])
def test_other_formats_become_png(format_name: str) -> None:
    """Formats that not every decoder reads are packed as 8-bit PNG, gray where they are gray."""
    image = read(save("L", format_name, **({"lossless": True} if format_name == "WEBP" else {})))
    assert image.data.startswith(b"\x89PNG")
    assert draw(1).tolist() == image.pixels.tolist()


def test_colours_survive_the_rewriting() -> None:
    """A rewritten picture has its channels in the right order."""
    picture = draw_colour(3)
    assert picture.tolist() == read(encode(".bmp", picture)).pixels.tolist()


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA"])
def test_unusual_png_is_rewritten(mode: str) -> None:
    """Palettes, transparency and single bits are written as plain 8-bit pixels."""
    image = read(save(mode, "PNG"))
    assert image.pixels.tolist() == decode(image.data).tolist()
    assert 2 == image.pixels.ndim
    assert image.data[24] == 8


@pytest.mark.parametrize(
    ("kind", "segment"),
    [
        ("exif", jpeg_segment(0xE1, build_exif(1) + b"Jane Doe")),
        ("xmp", jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0Jane Doe")),
        ("iptc", jpeg_segment(0xED, b"Photoshop 3.0\0Jane Doe")),
        ("comment", jpeg_segment(0xFE, b"Jane Doe")),
        ("icc", jpeg_segment(0xE2, b"ICC_PROFILE\0Jane Doe")),
        ("thumbnail", jpeg_segment(0xE0, b"JFXX\0Jane Doe")),
        ("application", jpeg_segment(0xEA, b"Jane Doe")),
    ],
)
def test_jpeg_metadata_is_reported_and_left_out(kind: str, segment: bytes) -> None:
    """Every kind of metadata is named and gone, and the rest of the file is as it was."""
    image = read(with_segments(GRAY_JPEG, segment))
    assert (kind,) == image.parsed.metadata
    assert GRAY_JPEG == image.data


def test_the_thumbnail_of_a_jfif_header_is_left_out() -> None:
    """JFIF's own header stays, less the small picture that it may carry."""
    header, pixels = GRAY_JPEG[6:20], b"\x07" * 12
    data = GRAY_JPEG[:2] + jpeg_segment(0xE0, header[:12] + b"\x02\x02" + pixels) + GRAY_JPEG[20:]
    assert decode(GRAY_JPEG).tolist() == decode(data).tolist()
    assert GRAY_JPEG == read(data).data


def test_what_follows_the_picture_is_left_out() -> None:
    """Bytes behind the end of a file, where cameras hide a second picture, are reported and left out."""
    for data in (GRAY_JPEG, GRAY_PNG):
        image = read(data + b"Jane Doe")
        assert ("trailing",) == image.parsed.metadata
        assert b"Jane" not in image.data


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [
        ("text", png_chunk(b"tEXt", b"Author\0Jane Doe")),
        ("xmp", png_chunk(b"iTXt", b"XML:com.adobe.xmp\0Jane Doe")),
        ("exif", png_chunk(b"eXIf", build_exif(1)[6:] + b"Jane Doe")),
        ("application", png_chunk(b"prVt", b"Jane Doe")),
    ],
)
def test_png_metadata_is_reported_and_left_out(kind: str, chunk: bytes) -> None:
    """Text, EXIF and private chunks are named and gone."""
    image = read(with_chunks(GRAY_PNG, chunk))
    assert (kind,) == image.parsed.metadata
    assert b"Jane" not in image.data


def test_adobe_header_stays() -> None:
    """Adobe's header says that channels are RGB and not YCbCr; without it the colours would be wrong."""
    stream = io.BytesIO()
    Image.fromarray(draw_colour(4)).save(stream, "JPEG", keep_rgb=True, quality=100, subsampling=0)
    data = with_segments(stream.getvalue(), jpeg_segment(0xFE, b"Jane Doe"))
    assert decode(data).tolist() == decode(read(data).data).tolist()


def test_progressive_jpeg_is_readable() -> None:
    """A JPEG of many scans is walked to its end."""
    data = save("L", "JPEG", progressive=True)
    assert data == read(data).data


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_kept_without_the_rest_of_exif(orientation: int) -> None:
    """Of EXIF the orientation alone stays, and only where it turns the picture."""
    data = turned(GRAY_JPEG, orientation)
    image = read(data)
    assert decode(data, cv2.IMREAD_GRAYSCALE).tolist() == image.pixels.tolist()
    assert (orientation == 1) == (image.data == GRAY_JPEG)
    assert b"Jane" not in image.data
    assert ((48, 32) if orientation >= 5 else (32, 48)) == image.pixels.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rewritten_pictures_are_turned_upright(orientation: int) -> None:
    """In formats without a common way to say it, orientation is applied to the pixels."""
    expected = decode(turned(encode(".jpg", draw(1)), orientation), cv2.IMREAD_GRAYSCALE).shape
    png = with_chunks(GRAY_PNG, png_chunk(b"eXIf", build_exif(orientation)[6:]))
    tiff = save("L", "TIFF", tiffinfo={274: orientation})
    upright = [read(data).pixels for data in (png, tiff)]
    assert [expected, expected] == [picture.shape for picture in upright]
    assert upright[0].tolist() == upright[1].tolist()


def test_orientation_that_makes_no_sense_is_upright() -> None:
    """Damaged EXIF does not turn a picture and does not stop packing."""
    assert [1, 1, 1, 1] == [
        read_orientation(data) for data in (b"", b"II*\0\xff\xff\xff\x7f", build_exif(9)[6:], build_exif(6)[6:-8])
    ]


def dali_decode(files: list[bytes], channels: int) -> list[np.ndarray]:
    """The files decoded by DALI's CPU operator."""
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    kind = dali.types.GRAY if channels == 1 else dali.types.RGB
    pipeline = dali.Pipeline(batch_size=len(files), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded = dali.fn.external_source([[np.frombuffer(file, np.uint8) for file in files]], dtype=dali.types.UINT8)
        pipeline.set_outputs(dali.fn.decoders.image(encoded, output_type=kind))
    pipeline.build()
    (output,) = pipeline.run()
    return [np.asarray(output.at(place)) for place in range(len(files))]


def test_dali_and_opencv_agree_on_what_is_packed() -> None:
    """Each packed kind and orientation decodes in both, in gray and in colour, to the same upright picture."""
    sources = [
        *(turned(GRAY_JPEG, orientation) for orientation in range(1, 9)),
        *(turned(COLOUR_JPEG, orientation) for orientation in range(1, 9)),
        with_chunks(GRAY_PNG, png_chunk(b"eXIf", build_exif(6)[6:])),
        encode(".png", draw_colour(1)),
        save("P", "PNG"),
        save("L", "JPEG", progressive=True),
        encode(".bmp", draw_colour(2)),
        save("RGB", "WEBP"),
    ]
    packed = [read(data).data for data in sources]
    for flag, channels in ((cv2.IMREAD_GRAYSCALE, 1), (cv2.IMREAD_COLOR_RGB, 3)):
        for data, theirs in zip(packed, dali_decode(packed, channels), strict=True):
            ours = decode(data, flag).reshape(theirs.shape)
            assert np.abs(ours.astype(int) - theirs).max() <= 3


def test_gray_in_three_channels_is_not_coloured() -> None:
    """Equal channels, JPEG's rounding included, are gray; a small coloured sign is not."""
    gray = cv2.cvtColor(draw(5), cv2.COLOR_GRAY2BGR)
    signed = gray.copy()
    signed[2:6, 2:6] = (0, 0, 255)
    pictures = [draw(5), decode(encode(".jpg", gray)), decode(encode(".jpg", signed)), draw_colour(5)]
    assert [False, False, True, True] == [is_coloured(picture) for picture in pictures]


def test_pixel_sums_are_exact_in_any_order() -> None:
    """Mean and deviation equal numpy's over all pixels together, and do not depend on the order of addition."""
    pictures = [draw_colour(seed)[: 10 + seed] for seed in range(5)]
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]) / 255
    forward, backward = PixelSums(), PixelSums()
    for picture in pictures:
        forward += sum_pixels(picture)
    for picture in reversed(pictures):
        backward += sum_pixels(picture)
    assert forward == backward
    assert pytest.approx(tuple(pixels.mean(axis=0)), abs=1e-12) == forward.mean()
    assert pytest.approx(tuple(pixels.std(axis=0)), abs=1e-12) == forward.deviation()


def test_a_mask_must_fit_its_image() -> None:
    """A mask is a PNG of one channel as large as its image; any other is refused with the reason."""
    mask = encode(".png", (draw(1) > 128).astype(np.uint8))
    assert decode(mask).tolist() == decode(read_mask(mask, 48, 32)).tolist()
    for data, reason in (
        (mask[:-9], "truncated"),
        (encode(".jpg", draw(1)), "PNG"),
        (encode(".png", draw_colour(1)), "colours"),
    ):
        with pytest.raises(RejectedError, match=reason):
            read_mask(data, 48, 32)
    with pytest.raises(RejectedError, match="48 x 32, its image 32 x 48"):
        read_mask(mask, 32, 48)
