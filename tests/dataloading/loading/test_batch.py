"""The last step before the model: normalising, and one channel becoming three."""

from __future__ import annotations

import pytest
import torch

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
