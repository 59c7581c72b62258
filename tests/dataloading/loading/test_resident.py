"""Pictures in the device's memory: the same batches as from the node's file. On a CPU here, on a GPU in tests/gpu."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch

from cluster.errors import InputError
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import Dataset
from dataloading.loading import resident
from dataloading.loading.augment import View, draw_augmentation, draw_uniforms
from dataloading.loading.cache import open_split
from dataloading.loading.executor import ExecutorSpec
from dataloading.loading.loader import Loader
from dataloading.loading.opencv import OpenCVExecutor
from dataloading.loading.plan import Request
from dataloading.loading.resident import ResidentExecutor
from tests.dataloading.loading.agreement import Difference, difference
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture

CPU = torch.device("cpu")
SUBPIXELS = Difference(mean=0.5, percentile_99=3, maximum=24)
"""OpenCV warps in steps of 1/32 pixel; these are the most that this makes of speckle."""


def both(dataset: Dataset, folder, image_size: int, augment: AugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """One draw of each picture of train, by either executor from the same pixels."""
    config = LoaderConfig(image_size=image_size, cache="device")
    split = open_split(dataset, "patient", "train", folder / "cache", pixel_side=config.pixel_side)
    records = split.records(np.arange(len(split)))
    places = split.pixels.places(records["id"])
    view = View(image_size=image_size, mean_gray=0.2)
    widths, heights = records["width"].astype(np.int64), records["height"].astype(np.int64)
    draws = draw_augmentation(augment, view, widths, heights, draw_uniforms(0, 0, 0, len(widths)))
    draws = draws._replace(reductions=places["reduction"].astype(np.int64))
    spec = ExecutorSpec(
        image_size=image_size, channels=dataset.info.channels, threads=1, in_flight=1, device=CPU, decoded=True
    )
    mine, theirs = ResidentExecutor(spec, split.pixels), OpenCVExecutor(spec)
    try:
        return (
            mine.submit(places, draws).result(),
            theirs.submit(split.pixels.pictures(places), draws).result(),
        )
    finally:
        mine.close()
        theirs.close()


@pytest.mark.parametrize("image_size", [36, 48, 200])
def test_draws_are_those_of_the_other_executor(gray_dataset, tmp_path, image_size, monkeypatch):
    """Every step on, pictures of several sizes and scales, in passes of 4."""
    monkeypatch.setattr(resident, "_CHUNK", 4)
    mine, theirs = both(gray_dataset, tmp_path, image_size, AugmentConfig(flip_vertical=0.5, zoom=0.3))
    assert mine.dtype == torch.uint8
    assert difference(mine, theirs).is_within(SUBPIXELS), difference(mine, theirs)


def test_real_pictures_are_alike(build_dataset, oct_images, tmp_path):
    """Real OCT at 224 px."""
    dataset = build_dataset(oct_images, sorted(n % 3 for n in range(len(oct_images))))
    mine, theirs = both(dataset, tmp_path, 224, AugmentConfig())
    assert difference(mine, theirs).is_within(SUBPIXELS), difference(mine, theirs)


def test_colour_keeps_its_order(build_dataset, tmp_path):
    """Channels are red, green and blue in both."""
    pictures = [encode_jpeg(speckled_picture(n, 140, 110, 3)) for n in range(6)]
    dataset = build_dataset(pictures, [0, 0, 0, 1, 1, 1], channels=3)
    mine, theirs = both(dataset, tmp_path, 48, AugmentConfig())
    assert mine.shape == (6, 3, 48, 48)
    assert difference(mine, theirs).is_within(SUBPIXELS), difference(mine, theirs)


def test_loaders_of_one_set_share_its_pixels(gray_dataset, tmp_path):
    """Train and val, one after another; with the last of them they are gone."""
    config = LoaderConfig(image_size=48, cache="device")
    split = open_split(gray_dataset, "patient", "train", tmp_path / "cache", pixel_side=config.pixel_side)
    spec = ExecutorSpec(image_size=48, channels=1, threads=1, in_flight=1, device=CPU, decoded=True)
    one, other = ResidentExecutor(spec, split.pixels), ResidentExecutor(spec, split.pixels)
    assert one._data is other._data
    one.close()
    other.close()
    gc.collect()
    assert not resident._RESIDENTS


def test_on_a_cpu_the_mapped_file_serves(gray_dataset, tmp_path):
    """`device` is `pixels` where there is no GPU: the same batches, no second copy."""
    batches = []
    for cache in ("pixels", "device"):
        config = dataclasses.replace(LoaderConfig(backend="opencv", image_size=48), cache=cache)
        split = open_split(gray_dataset, "patient", "train", tmp_path / "cache", pixel_side=config.pixel_side)
        with Loader(split, gray_dataset.info, config, augment=None, seed=0, device=CPU, threads=1) as loader:
            (batch,) = loader.load([Request(-1, -1, 0, 0, np.arange(len(split)))])
        batches.append(batch.images)
    assert torch.equal(*batches)
    assert not resident._RESIDENTS


def test_what_does_not_fit_is_refused(monkeypatch):
    """By name, with what to do instead."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 << 30, 16 << 30))
    many = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2 << 30,), (0,))
    with pytest.raises(InputError, match=r"2\.00 GiB, but of this GPU's 16\.00 GiB half is left"):
        resident._copy(many, gpu)
