"""Decode once: the same pictures as from the encoded files, made by whoever comes first, whole or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import disk
from cluster.errors import InputError, StoreError
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import Dataset
from dataloading.loading import node_cache, pixels
from dataloading.loading.cache import Split, open_split, require_room
from dataloading.loading.loader import BACKENDS, Loader
from dataloading.loading.plan import Request
from tests.dataloading.loading.agreement import AT_FULL_SCALE, Difference, difference
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, stand_in

CPU = torch.device("cpu")
ENCODED = LoaderConfig(backend="opencv", image_size=48)
DECODED = dataclasses.replace(ENCODED, cache="pixels")

SHARPER = Difference(mean=0.5, percentile_99=6, maximum=100)
"""A draw that shows a small part is decoded at a finer scale from the file than the pixels were kept at; the greatest
difference is where a zoomed-out picture ends."""


def load(dataset: Dataset, folder: Path, config: LoaderConfig, augment: AugmentConfig | None = None) -> torch.Tensor:
    """All pictures of train, or one epoch's draws of them, uint8 [n, C, S, S]."""
    split = open_split(dataset, "patient", "train", folder / "cache", pixel_side=config.pixel_side)
    requests = [Request(-1 if augment is None else 0, 0, 0, 0, np.arange(len(split)))]
    with Loader(split, dataset.info, config, augment=augment, seed=0, device=CPU, threads=2) as loader:
        (batch,) = loader.load(requests)
    return batch.images


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("image_size", [36, 48, 200])
def test_pictures_are_those_of_the_files(gray_dataset, tmp_path, backend, image_size):
    """Kept at a quarter, at half and at full scale: seen whole, both ways decode alike."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra `dali`)")
    encoded = dataclasses.replace(ENCODED, image_size=image_size)
    decoded = dataclasses.replace(encoded, cache="pixels", backend=backend)
    apart = difference(load(gray_dataset, tmp_path, encoded), load(gray_dataset, tmp_path, decoded))
    assert apart.is_within(AT_FULL_SCALE), apart


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_are_those_of_the_files(gray_dataset, tmp_path, backend):
    """The same crops, turns and tones; at most somewhat less sharp where little of a picture is shown."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra `dali`)")
    augment = AugmentConfig(flip_vertical=0.5, zoom=0.1)
    decoded = dataclasses.replace(DECODED, backend=backend)
    apart = difference(load(gray_dataset, tmp_path, ENCODED, augment), load(gray_dataset, tmp_path, decoded, augment))
    assert apart.is_within(SHARPER), apart


def test_real_pictures_are_those_of_the_files(build_dataset, oct_images, tmp_path):
    """Real OCT at 224 px: half scale is kept."""
    dataset = build_dataset(oct_images, sorted(n % 3 for n in range(len(oct_images))))
    encoded, decoded = (dataclasses.replace(config, image_size=224) for config in (ENCODED, DECODED))
    assert difference(load(dataset, tmp_path, encoded), load(dataset, tmp_path, decoded)).is_within(AT_FULL_SCALE)
    augment = AugmentConfig()
    apart = difference(load(dataset, tmp_path, encoded, augment), load(dataset, tmp_path, decoded, augment))
    assert apart.is_within(SHARPER), apart


@pytest.mark.parametrize("backend", BACKENDS)
def test_colour_stays_colour(build_dataset, tmp_path, backend):
    """RGB in the file, on both executors."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra `dali`)")
    dataset = build_dataset(
        [encode_jpeg(speckled_picture(n, 140, 110, 3)) for n in range(6)], [0, 0, 0, 1, 1, 1], channels=3
    )
    decoded = dataclasses.replace(DECODED, backend=backend)
    apart = difference(load(dataset, tmp_path, ENCODED), load(dataset, tmp_path, decoded))
    assert apart.is_within(AT_FULL_SCALE), apart


def test_a_large_picture_is_kept_small(build_dataset, tmp_path):
    """Eight times as long as wanted and more: beyond what libjpeg reduces, and a PNG, which nothing reduces."""
    import cv2

    large = speckled_picture(1, 1700, 1300)
    png = cv2.imencode(".png", large)[1].tobytes()
    dataset = build_dataset([encode_jpeg(large), png], [0, 1])
    split = open_split(dataset, "patient", "train", tmp_path / "cache", pixel_side=40)
    assert split.pixels is not None
    places = split.pixels.places(np.arange(2))
    pictures, reductions = split.pixels.pictures(places), places["reduction"]
    assert [picture.shape for picture in pictures] == [(41, 54, 1)] * 2
    assert reductions.tolist() == [32, 32]
    blocks = cv2.copyMakeBorder(large, 0, 12, 0, 28, cv2.BORDER_REPLICATE).reshape(41, 32, 54, 32).mean(axis=(1, 3))
    assert np.abs(pictures[1][..., 0] - blocks).max() <= 1
    assert np.abs(pictures[0][..., 0] - blocks).mean() <= 1


def test_all_splits_and_later_openings_share_one_file(gray_dataset, tmp_path, monkeypatch):
    """Nobody decodes a second time; views cannot be written to; another process opens it by address."""
    import pickle

    first = open_split(gray_dataset, "patient", "train", tmp_path / "cache", pixel_side=40)
    monkeypatch.setattr(pixels, "_write", None)
    val = open_split(gray_dataset, "patient", "val", tmp_path / "cache", pixel_side=40)
    again: Split = pickle.loads(pickle.dumps(first))
    assert again.pixels is not None
    assert val.pixels is not None
    (picture,) = again.pixels.pictures(again.pixels.places(np.array([3])))
    (other,) = val.pixels.pictures(val.pixels.places(np.array([3])))
    assert np.array_equal(picture, other)
    assert not picture.flags.writeable
    assert len(list((tmp_path / "cache").glob("*/pixels-*.u8"))) == 1


def test_what_is_damaged_is_made_anew(gray_dataset, tmp_path):
    """A file of another size, or without its index: as after a fault of the disk."""
    images = load(gray_dataset, tmp_path, DECODED)
    (data,) = (tmp_path / "cache").glob("*/pixels-*.u8")
    data.write_bytes(data.read_bytes()[:-1])
    assert torch.equal(load(gray_dataset, tmp_path, DECODED), images)
    index = data.with_suffix(".npy")
    index.write_bytes(index.read_bytes()[:-30])
    assert torch.equal(load(gray_dataset, tmp_path, DECODED), images)
    index.unlink()
    assert torch.equal(load(gray_dataset, tmp_path, DECODED), images)


def test_size_is_stated_and_progress_told(gray_dataset, tmp_path):
    """Before the first picture is decoded."""
    told: list[tuple[str, int, int]] = []
    cache = tmp_path / "cache"
    open_split(gray_dataset, "patient", "train", cache, pixel_side=40, progress=lambda *at: told.append(at))
    (data,) = cache.glob("*/pixels-*.u8")
    what, done, total = next(at for at in told if "pictures" in at[0])
    assert (done, total) == (0, 23)
    assert disk.readable_bytes(data.stat().st_size) in what


def test_a_picture_that_cannot_be_decoded_is_named(build_dataset, tmp_path):
    """And nothing stays."""
    dataset = build_dataset([encode_jpeg(speckled_picture(1, 90, 80)), stand_in(b"no picture")], [0, 1])
    with pytest.raises(InputError, match=r"image id 1 \(shards/00000.arrow\) cannot be decoded"):
        open_split(dataset, "patient", "train", tmp_path / "cache", pixel_side=40)
    assert not list((tmp_path / "cache").glob("*/pixels-*"))
    assert not list((tmp_path / "cache").glob("*/.tmp-*"))


def test_pixels_without_room_are_refused_before_anything_is_written(gray_dataset, tmp_path, monkeypatch):
    """By the check before a run, and by the opening itself."""
    cache = tmp_path / "cache"
    limit_gib = 1e-5
    with pytest.raises(StoreError, match=r"loader\.cache=pixels"):
        require_room(gray_dataset, cache, limit_gib, pixel_side=40)
    with pytest.raises(StoreError, match=r"loader\.cache=pixels"):
        open_split(gray_dataset, "patient", "train", cache, limit_gib=limit_gib, pixel_side=40)
    assert not list(cache.glob("*/pixels-*"))
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda path: disk_with(node_cache._SPARE_BYTES + 1000))
    with pytest.raises(StoreError, match="the disk has"):
        require_room(gray_dataset, cache, pixel_side=40)


def disk_with(free: int) -> object:
    """What `shutil.disk_usage` says of a disk with so many bytes free."""
    import collections

    return collections.namedtuple("usage", "total used free")(2**40, 2**40 - free, free)
