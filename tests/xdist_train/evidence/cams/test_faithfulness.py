"""Taking pixels away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xdist_train.evidence.cams.faithfulness import REMOVALS, SHARE, is_chosen, removed


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8)


def test_each_removal_takes_the_same_share() -> None:
    """A tenth of the pixels changes, or as good as (a blurred pixel may be what it was)."""
    pictures = removed(_picture(), torch.randn(8, 8), 5)
    assert set(REMOVALS) == set(pictures)
    for picture in pictures.values():
        assert (picture != _picture()).mean() == pytest.approx(SHARE, abs=0.002)


def test_the_top_is_where_the_map_is_highest() -> None:
    """All that changes lies around the hot cell."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    values = -((y - 2) ** 2 + (x - 5) ** 2)
    rows, columns = np.nonzero((removed(_picture(), values, 5)["top"] != _picture())[:, :, 0])
    assert (rows.mean(), columns.mean()) == (pytest.approx(19.5, abs=1), pytest.approx(43.5, abs=1))


def test_chance_is_the_images_own() -> None:
    """Equal for the same image in any process; other for another."""
    first, again, other = (removed(_picture(), torch.zeros(8, 8), number) for number in (5, 5, 6))
    assert (first["random_pixels"] == again["random_pixels"]).all()
    assert (first["random_map"] == again["random_map"]).all()
    assert (first["random_pixels"] != other["random_pixels"]).any()


@pytest.mark.parametrize(("num_images", "wanted"), [(10, 0), (10, 3), (10, 10), (10, 99), (1000, 500)])
def test_images_are_spread_over_the_split(num_images: int, wanted: int) -> None:
    """As many as wanted, at even distances."""
    rows = [row for row in range(num_images) if is_chosen(row, num_images, wanted)]
    assert min(wanted, num_images) == len(rows)
    gaps = np.diff(rows)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
