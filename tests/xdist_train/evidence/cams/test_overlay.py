"""Pictures for people."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xdist_train.evidence.cams.overlay import draw_overlay, encode_jpeg, shown_picture


def _encoded(width: int, height: int) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].ravel()


@pytest.mark.parametrize(
    ("source", "shown"),
    [((768, 496), (512, 331)), ((496, 512), (496, 512)), ((300, 1200), (128, 512)), ((40, 30), (40, 30))],
)
def test_a_picture_keeps_its_aspect(source: tuple[int, int], shown: tuple[int, int]) -> None:
    """Only ever smaller, no side above the limit."""
    picture, size = shown_picture(_encoded(*source), 512)
    assert source == size
    assert (shown[1], shown[0], 3) == picture.shape


def test_the_overlay_colours_what_the_map_says() -> None:
    """Red where it is highest, the plain picture where it is 0."""
    picture, values = np.full((20, 30, 3), 80, np.uint8), np.zeros((20, 30), np.float32)
    values[5:10, 5:10] = 3.0
    drawn = draw_overlay(picture, values)
    assert (drawn[15:] == 80).all()
    blue, _, red = drawn[7, 7].astype(int)
    assert red > blue + 30


def test_a_map_of_zeros_changes_nothing() -> None:
    """No colour and no warning."""
    picture = np.full((8, 8, 3), 80, np.uint8)
    assert (draw_overlay(picture, np.zeros((8, 8), np.float32)) == picture).all()
    assert encode_jpeg(picture)[:2] == b"\xff\xd8"
