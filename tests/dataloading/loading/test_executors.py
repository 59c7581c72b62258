"""OpenCV and DALI execute the same numbers: the contract of both, and how closely they agree."""

from __future__ import annotations

import dataclasses
import gc
import io
import threading
import time
from concurrent.futures import CancelledError

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataloading.config import AugmentConfig
from dataloading.loading.augment import Augmentation, View, plain_view
from dataloading.loading.executor import Executor, UndecodableError, is_jpeg
from dataloading.loading.loader import BACKENDS
from dataloading.loading.opencv import OpenCVExecutor
from tests.dataloading.loading.agreement import (
    AT_FULL_SCALE,
    AT_REDUCED_SCALE,
    Difference,
    augmentation_of,
    build_spec,
    difference,
    run,
)
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture

CPU = torch.device("cpu")


def build(backend: str, channels: int = 1, image_size: int = 224) -> Executor:
    """An executor on the CPU; skips where DALI is not installed."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra `dali`)")
    return BACKENDS[backend](build_spec(CPU, channels, image_size))


def plain(images: list[bytes], image_size: int, reduce_tolerance: float = 0.9) -> Augmentation:
    """The plain view of some images."""
    numbers = augmentation_of(images, reduce_tolerance=reduce_tolerance)
    view = View(image_size=image_size, reduce_tolerance=reduce_tolerance)
    return plain_view(view, numbers.widths, numbers.heights)


@pytest.fixture(params=list(BACKENDS))
def backend(request) -> str:
    """Each executor in turn."""
    return request.param


@pytest.mark.parametrize(
    ("reduce_tolerance", "reduction", "limit"),
    [(9.0, 1, AT_FULL_SCALE), (0.8, 2, AT_REDUCED_SCALE), (0.4, 4, AT_REDUCED_SCALE)],
)
def test_executors_agree_on_real_oct_images(oct_images, reduce_tolerance, reduction, limit):
    """On every real picture, fully augmented, the two differ by no more than is stated for the scale."""
    augmentation = augmentation_of(oct_images, reduce_tolerance=reduce_tolerance)
    opencv, dali = (run(build(name), oct_images, augmentation) for name in ("opencv", "dali"))
    assert set(augmentation.reductions.tolist()) == {reduction}
    assert difference(opencv, dali).is_within(limit), difference(opencv, dali)


@pytest.mark.parametrize(("reduce_tolerance", "limit"), [(9.0, AT_FULL_SCALE), (0.9, AT_REDUCED_SCALE)])
def test_executors_agree_on_colour(reduce_tolerance, limit):
    """RGB sets too: same channel order, same warp, with and without a reduced decode."""
    images = [encode_jpeg(speckled_picture(n, 301 + 13 * n, 277 + 5 * n, channels=3)) for n in range(12)]
    augmentation = augmentation_of(images, reduce_tolerance=reduce_tolerance, image_size=128)
    opencv, dali = (run(build(name, 3, 128), images, augmentation) for name in ("opencv", "dali"))
    assert opencv.shape == (12, 3, 128, 128)
    assert difference(opencv, dali).is_within(limit), difference(opencv, dali)


@pytest.mark.parametrize(("reduce_tolerance", "limit"), [(9.0, AT_FULL_SCALE), (0.9, AT_REDUCED_SCALE)])
def test_executors_agree_on_zoomed_pictures(reduce_tolerance, limit):
    """In and out, each at the scale that it is decoded at."""
    images = [encode_jpeg(speckled_picture(n, 301 + 13 * n, 277 + 5 * n)) for n in range(12)]
    config = AugmentConfig(zoom=0.6)
    augmentation = augmentation_of(images, reduce_tolerance=reduce_tolerance, image_size=128, config=config)
    assert len(set(augmentation.reductions.tolist())) == (1 if reduce_tolerance == 9.0 else 2)
    opencv, dali = (run(build(name, 1, 128), images, augmentation) for name in ("opencv", "dali"))
    assert difference(opencv, dali).is_within(limit), difference(opencv, dali)


def test_zooming_out_shows_black_around_the_picture(backend):
    """The picture is smaller by the factor, in the middle, and 0 lies about it."""
    image = encode_jpeg(np.full((64, 64), 200, np.uint8))
    whole = (1.0, 1.0)
    config = AugmentConfig(crop_scale=whole, crop_ratio=whole, rotation_degrees=0, brightness=0, contrast=0, zoom=0.5)
    numbers = augmentation_of([image] * 30, reduce_tolerance=9.0, image_size=64, config=config)
    sides = np.minimum(64, 64 / np.abs(numbers.matrices[:, 0, 0]))
    batch = run(build(backend, 1, 64), [image] * 30, numbers).numpy()[:, 0]
    lit = [(picture[32] > 100).sum() for picture in batch]
    assert np.abs(np.array(lit) - sides).max() <= 1.01
    assert (sides.min() < 50, sides.max()) == (True, 64)
    corners = batch[sides < 60][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert 0 == corners.max()


def test_colour_is_rgb(backend):
    """The first channel is red."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :] = (10, 60, 200)  # OpenCV encodes from BGR
    image = cv2.imencode(".png", picture)[1].tobytes()
    batch = run(build(backend, 3, 32), [image], plain([image], 32))
    assert batch[0, :, 16, 16].tolist() == [200, 60, 10]


@pytest.mark.parametrize("size", [(64, 96), (63, 95), (240, 402)])
def test_exif_orientation_is_applied_alike(size):
    """A picture stored in any of the eight orientations comes out upright from both executors."""
    upright = cv2.GaussianBlur(speckled_picture(3, *size), (0, 0), 4)
    images = [stored_turned(upright, orientation) for orientation in range(1, 9)]
    for reduce_tolerance in (9.0, 0.9):
        numbers = plain(images, 48, reduce_tolerance)
        batches = [run(build(name, 1, 48), images, numbers) for name in ("opencv", "dali")]
        assert set(numbers.widths.tolist()) == {size[0]}
        assert difference(*batches).is_within(Difference(1.0, 5, 12)), difference(*batches)
        for batch in batches:
            assert difference(batch[1:], batch[:1].expand(7, -1, -1, -1)).is_within(Difference(2.0, 9, 25))


def stored_turned(upright: np.ndarray, orientation: int) -> bytes:
    """A JPEG that shows `upright` once its EXIF orientation is applied."""
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    picture = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    (picture.transpose(inverse) if inverse is not None else picture).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_the_plain_view_of_a_fitting_picture_is_the_picture(backend):
    """At the model's own size nothing is interpolated: the convention of pixel centres is exact."""
    picture = speckled_picture(0, 96, 96)
    image = cv2.imencode(".png", picture)[1].tobytes()
    batch = run(build(backend, 1, 96), [image], plain([image], 96))
    assert (batch[0, 0].numpy() == picture).all()


def test_tones_are_rounded_and_clipped(backend):
    """A level x becomes round(clip(gain * x + 255 * shift))."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = cv2.imencode(".png", ramp)[1].tobytes()
    gain, shift = np.float32(1.7), np.float32(-0.21)
    numbers = plain([image], 16)._replace(gains=np.array([gain]), shifts=np.array([shift]))
    expected = np.rint(np.clip(gain * ramp.astype(np.float32) + np.float32(255) * shift, 0, 255))
    assert run(build(backend, 1, 16), [image], numbers)[0, 0].tolist() == expected.tolist()


def test_outside_of_the_picture_is_black(backend):
    """What a turned crop sees beyond the edges is 0 before tones."""
    image = encode_jpeg(np.full((64, 64), 200, np.uint8))
    numbers = plain([image], 64)
    numbers = numbers._replace(matrices=numbers.matrices + np.array([[0, 0, 100], [0, 0, 0]]))
    assert int(run(build(backend, 1, 64), [image], numbers).max()) == 0


def test_batches_of_any_size_come_back_in_order(backend):
    """Short, long and single batches can be in flight together; each result is its own."""
    images = [encode_jpeg(np.full((40, 40), 5 * n, np.uint8)) for n in range(24)]
    executor = build(backend, 1, 16)
    spans = [(0, 3), (3, 4), (4, 24), (0, 1), (7, 19)]
    for _ in range(2):
        pending = [
            executor.submit([np.frombuffer(i, np.uint8) for i in images[a:b]], plain(images[a:b], 16)) for a, b in spans
        ]
        levels = [p.result()[:, 0, 8, 8].tolist() for p in pending]
        assert levels == [[5 * n for n in range(a, b)] for a, b in spans]
    executor.close()


def test_a_result_is_not_overwritten_by_later_batches(backend):
    """Whoever holds a batch holds its pixels, however many follow."""
    images = [encode_jpeg(np.full((40, 40), 10 * n, np.uint8)) for n in range(20)]
    executor = build(backend, 1, 16)
    held = [executor.submit([np.frombuffer(i, np.uint8)], plain([i], 16)).result() for i in images]
    executor.close()
    gc.collect()
    assert [int(batch[0, 0, 8, 8]) for batch in held] == [10 * n for n in range(20)]


def test_batches_can_be_given_up(backend):
    """Discarded batches leave nothing behind: the next one is right, also after a picture that failed."""
    dark, bright = (encode_jpeg(np.full((40, 40), level, np.uint8)) for level in (30, 90))
    broken = b"\xff\xd8 no picture"
    executor = build(backend, 1, 16)
    for images in ([dark] * 4, [broken] * 4, [dark, broken]):
        numbers = plain([dark] * len(images), 16)
        pending = [executor.submit([np.frombuffer(i, np.uint8) for i in images], numbers) for _ in range(2)]
        for one in pending:
            one.discard()
        assert int(run(executor, [bright], plain([bright], 16))[0, 0, 8, 8]) == 90
    executor.close()


@pytest.mark.parametrize("broken", [b"", b"x", b"\xff\xd8\xff", b"this is not a picture at all" * 20])
def test_an_undecodable_picture_is_named(backend, broken):
    """The error tells the place in the batch; the executor can be used again."""
    good = encode_jpeg(np.full((40, 40), 90, np.uint8))
    executor = build(backend, 1, 16)
    images = [good, good, broken, good]
    numbers = plain([good] * 4, 16)
    with pytest.raises(UndecodableError) as caught:
        run(executor, images, numbers)
    assert caught.value.position == 2
    assert int(run(executor, [good], plain([good], 16))[0, 0, 8, 8]) == 90
    executor.close()


def test_opencv_finds_a_picture_of_another_size():
    """A picture that is not as large as the manifest says is named rather than shown askew."""
    image = encode_jpeg(np.full((40, 44), 90, np.uint8))
    numbers = plain([image], 16)._replace(widths=np.array([45]))
    with pytest.raises(UndecodableError, match="22 x 20 pixels at scale 1/2, but the manifest says 45 x 40"):
        run(build("opencv", 1, 16), [image], numbers)


def test_only_jpegs_are_reduced(backend):
    """A large PNG is decoded whole, whatever the reduction."""
    picture = cv2.GaussianBlur(speckled_picture(1, 200, 200), (0, 0), 3)
    image = cv2.imencode(".png", picture)[1].tobytes()
    assert not is_jpeg(np.frombuffer(image, np.uint8))
    numbers = plain([image], 50)
    assert numbers.reductions.tolist() == [4]
    whole = run(build(backend, 1, 50), [image], numbers._replace(reductions=np.array([1])))
    assert run(build(backend, 1, 50), [image], numbers).tolist() == whole.tolist()


def test_opencv_leaves_no_threads():
    """After `close` no thread that the executor started is alive."""
    before = set(threading.enumerate())
    executor = build("opencv")
    image = encode_jpeg(np.full((40, 40), 90, np.uint8))
    run(executor, [image] * 8, plain([image] * 8, 224))
    started = set(threading.enumerate()) - before
    executor.close()
    assert (len(started) > 0, [thread.name for thread in started if thread.is_alive()]) == (True, [])


def test_a_reduced_decode_is_closer_to_the_truth_than_a_full_one(oct_images):
    """Half scale aliases less: it is nearer to a 4x supersampled warp, and cheaper."""
    config = AugmentConfig(brightness=0, contrast=0)
    full = augmentation_of(oct_images, reduce_tolerance=9.0, config=config)
    half = augmentation_of(oct_images, reduce_tolerance=0.8, config=config)
    fine = full._replace(matrices=full.matrices * [1 / 4, 1 / 4, 1])
    truth = run(build("opencv", 1, 4 * 224), oct_images, fine).float()
    truth = torch.nn.functional.avg_pool2d(truth, 4).round().byte()
    errors = [difference(run(build("opencv"), oct_images, numbers), truth).mean for numbers in (half, full)]
    assert errors[0] < 0.85 * errors[1]


def test_a_batch_that_closing_took_back_is_an_error_and_no_wait():
    """A result that nobody works on any more is not waited for."""
    free, image = threading.Event(), encode_jpeg(speckled_picture(0, 16, 16))
    executor = OpenCVExecutor(dataclasses.replace(build_spec(CPU, 1, 8), threads=1))
    executor._pool.submit(free.wait)
    pending = executor.submit([np.frombuffer(image, np.uint8)], plain([image], 8))
    closing = threading.Thread(target=executor.close)
    closing.start()
    while not pending.futures[0].cancelled():
        time.sleep(0.001)
    free.set()
    closing.join()
    with pytest.raises(CancelledError):
        pending.result()
