"""Maps, masks and pictures over each other."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from dataloading.loading.augment import View, plain_view
from dataloading.loading.executor import ExecutorSpec
from dataloading.loading.opencv import OpenCVExecutor
from xdist_train.evidence.cams.geometry import map_on_picture, peak_px, upsample, warp_mask

_SIZE = 64


def _encoded(picture: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", picture)[1].ravel()


def _matrix(width: int, height: int, fit: str) -> np.ndarray:
    view = View(image_size=_SIZE, fit=fit)  # type: ignore[arg-type]
    return plain_view(view, np.array([width]), np.array([height])).matrices[0]


def test_upsampling_is_that_of_opencv() -> None:
    """Bilinear between the centres of cells."""
    maps = np.random.default_rng(0).random((2, 7, 5), np.float32)
    expected = np.stack([cv2.resize(values, (_SIZE, _SIZE)) for values in maps])
    assert np.abs(expected - upsample(torch.from_numpy(maps), _SIZE).numpy()).max() < 1e-5


def test_the_peak_is_the_centre_of_its_cell() -> None:
    """Row and column of the largest cell, in pixels from the edge."""
    values = np.zeros((4, 8))
    values[1, 6] = 1
    assert (24.0, 52.0) == peak_px(values, _SIZE)


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_mask_lies_where_its_image_does(fit: str) -> None:
    """The same picture sent through the executor as an image and here as a mask covers the same pixels."""
    picture = np.zeros((496, 768), np.uint8)
    picture[200:320, 300:500] = 255
    spec = ExecutorSpec(image_size=_SIZE, channels=1, threads=1, in_flight=1, device=torch.device("cpu"))
    view = plain_view(View(image_size=_SIZE, fit=fit), np.array([768]), np.array([496]))  # type: ignore[arg-type]
    executor = OpenCVExecutor(spec)
    as_image = executor.submit([_encoded(picture)], view).result()[0, 0].numpy()
    executor.close()
    as_mask = warp_mask(_encoded(picture), _matrix(768, 496, fit), _SIZE)
    assert 0 < as_mask.sum() < _SIZE**2
    assert np.mean(as_mask != (as_image > 127)) < 0.005


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_map_lies_where_the_model_saw_it(fit: str) -> None:
    """The hot cell's place on the drawn picture is what the view's matrix says; nothing is drawn outside the view."""
    matrix, source, shown = _matrix(768, 496, fit), (768, 496), (384, 248)
    values = np.zeros((8, 8), np.float32)
    values[2, 5] = 1
    drawn = map_on_picture(values, matrix, _SIZE, source, shown)
    expected_x, expected_y = matrix @ [5.5 * _SIZE / 8, 2.5 * _SIZE / 8, 1] / 2
    rows, columns = np.nonzero(drawn > 0.7 * drawn.max())
    assert (248, 384) == drawn.shape
    assert expected_x == pytest.approx(columns.mean() + 0.5, abs=1)
    assert expected_y == pytest.approx(rows.mean() + 0.5, abs=1)
    everywhere = map_on_picture(np.ones((8, 8), np.float32), matrix, _SIZE, source, shown)
    assert (384 if fit == "stretch" else 248) == pytest.approx((everywhere > 0).any(axis=0).sum(), abs=1)
