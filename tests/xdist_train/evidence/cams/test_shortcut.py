"""Shares of maps where they should not be."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from xdist_train.evidence.cams.shortcut import BORDER, border_of, energy_share, outside_tissue, report


def _retina(white: bool = False) -> np.ndarray:
    """A bright band on dark noise, maybe with a filled corner as a turned scan has."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 40, (128, 128), dtype=np.uint8)
    picture[48:80] = generator.integers(70, 180, (32, 128))
    if white:
        picture[:24, :] = 255
    return picture


@pytest.mark.parametrize("white", [False, True])
def test_tissue_is_the_band(white: bool) -> None:
    """Within a pixel or two of its edges; a white corner is not tissue."""
    outside = outside_tissue(_retina(white))
    assert outside is not None
    at_full_size = cv2.resize(outside, (128, 128))
    expected = np.ones((128, 128), np.float32)
    expected[48:80] = 0
    assert np.abs(at_full_size - expected).mean() < 0.06


def test_an_even_picture_has_no_tissue() -> None:
    """Nor a share outside of it."""
    assert outside_tissue(np.full((64, 64), 90, np.uint8)) is None


def test_an_even_map_has_the_areas_shares() -> None:
    """On the border 36 %; a negative map has none."""
    maps = torch.stack([torch.ones(8, 8), -torch.ones(8, 8)])
    shares = energy_share(maps, border_of(160).expand(2, -1, -1))
    assert shares[0].item() == pytest.approx(1 - (1 - 2 * BORDER) ** 2, abs=1e-6)
    assert shares[1].isnan()


def test_a_map_on_the_border_is_warned_of() -> None:
    """By the share, the area and what to do; a map in the middle of the tissue is not."""
    high = report(np.array([0.9, 0.8]), np.array([0.3, np.nan]), np.array([0.7, np.nan]))
    assert (True, False) == (high["border"]["high"], high["outside_tissue"]["high"])
    assert "85% of the maps' energy lies on the outer 10% of the picture, which is 36% of the area" in high["warning"]
    both = report(np.array([0.9]), np.array([0.9]), np.array([0.7]))
    assert "outside tissue, which is 70%" in both["warning"]
    assert report(np.array([0.2]), np.array([0.4]), np.array([0.7]))["warning"] is None


def test_a_set_without_tissue_has_no_share() -> None:
    """None, not a number; the border is still judged."""
    found = report(np.array([0.2]), np.array([np.nan]), np.array([np.nan]))
    assert found["outside_tissue"]["share"] is None
    assert found["warning"] is None
