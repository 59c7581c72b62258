"""The last step before the model: normalising, and one channel becoming three."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloading.loading import batch as batch_module
from dataloading.loading.batch import Batch, normalise


def pictures(channels: int) -> torch.Tensor:
    """All gray levels, uint8 [2, channels, 16, 16]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, channels, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("in_channels", "channels", "mean", "std"),
    [
        (1, 3, (0.2,), (0.3,)),
        (1, 1, (0.2,), (0.3,)),
        (3, 3, (0.5,), (0.25,)),
        (3, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (1, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalise_is_the_formula(in_channels, channels, mean, std, dtype):
    """Each level x of a channel becomes (x / 255 - mean) / std, with as many channels as asked for."""
    images = pictures(in_channels)
    centre, spread = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, 1, 1) for v in (mean, std))
    expected = ((images.double() / 255 - centre) / spread).expand(2, channels, 16, 16)
    actual = normalise(images, mean, std, channels, dtype)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_gray_is_expanded_without_a_copy():
    """Three channels of a gray picture are one channel seen three times, and the input is left alone."""
    images = pictures(1)
    before = images.clone()
    result = normalise(images, (0.2,), (0.3,))
    assert result.shape == (2, 3, 16, 16)
    assert result.stride(1) == 0
    assert torch.equal(images, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("means", [0, 1, 3])
def test_a_dense_result_is_the_view_copied(monkeypatch, memory_format, dtype, in_channels, means):
    """In as many blocks as it may take, the last of them short; in bits where nothing is summed."""
    monkeypatch.setattr(batch_module, "_BLOCK_BYTES", 2 * 4 * in_channels * 16 * 16)
    images = torch.cat([pictures(in_channels), pictures(in_channels).flip(-1), pictures(in_channels)[:1]])
    mean, std = (0.485, 0.456, 0.406)[:means], (0.229, 0.224, 0.225)[:means]
    for pixels in (images, images.contiguous(memory_format=torch.channels_last)):  # as executors deliver them
        before = pixels.clone()
        dense = normalise(pixels, mean, std, 3, dtype, memory_format)
        assert dense.is_contiguous(memory_format=memory_format)
        view = normalise(pixels, mean, std, 3, dtype)
        torch.testing.assert_close(dense, view, rtol=0, atol=0 if means else 1e-5)
        assert torch.equal(pixels, before)


def test_half_precision_is_rounded_once():
    """A half-precision result is the float32 one, rounded."""
    images = pictures(1)
    for dtype in (torch.bfloat16, torch.float16):
        expected = normalise(images, (0.2,), (0.3,)).to(dtype)
        assert torch.equal(normalise(images, (0.2,), (0.3,), dtype=dtype), expected)


def test_a_batch_moves_with_all_its_tensors():
    """`to` keeps the figures and moves every tensor."""
    batch = Batch(pictures(1), torch.tensor([0, 1]), torch.tensor([7, 9]), epoch=1, step=2, index=3)
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.images, moved.labels, moved.rows)} == {"meta"}
    assert (len(moved), moved.epoch, moved.step, moved.index) == (2, 1, 2, 3)


def _standardised(image: torch.Tensor) -> torch.Tensor:
    """The definition of `tf.image.per_image_standardization`, written out, of one picture in [0, 1]."""
    x = image.double() / 255
    mean = x.sum() / x.numel()
    variance = ((x - mean) ** 2).sum() / x.numel()
    return (x - mean) / variance.sqrt().clamp_min(x.numel() ** -0.5)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    spread=st.integers(1, 256),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_each_picture_may_be_taken_by_its_own_figures(size, channels, spread, dtype, seed):
    """(x - mean) / max(deviation, 1 / sqrt(pixels)) of that picture, whatever else is in the batch."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, spread, (3, channels, size, size), dtype=torch.uint8, generator=generator)
    actual = normalise(images, (), (), dtype=dtype)
    expected = torch.stack([_standardised(image) for image in images]).expand(3, 3, size, size)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)
    assert torch.equal(normalise(images[1:2], (), (), dtype=dtype), actual[1:2])


def test_a_blank_picture_is_zero():
    """No deviation is no division by 0."""
    images = torch.full((2, 1, 8, 8), 77, dtype=torch.uint8)
    assert float(normalise(images, (), ()).abs().max()) < 1e-5


def test_brightness_and_contrast_of_a_whole_picture_do_not_matter():
    """A picture of half the contrast, moved up, is the same picture to the model."""
    images = pictures(1) // 2 * 2
    torch.testing.assert_close(normalise(images, (), ()), normalise(images // 2 + 60, (), ()), rtol=0, atol=1e-5)
