"""Fixtures of the loader's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, real_oct_files, speckled_picture, write_dataset

BuildDataset = Callable[..., Dataset]


@pytest.fixture(scope="session")
def oct_images() -> list[bytes]:
    """The encoded bytes of the real OCT files."""
    return [path.read_bytes() for path in real_oct_files()]


@pytest.fixture
def build_dataset(tmp_path: Path) -> BuildDataset:
    """`write_dataset` into a folder of the test's own."""
    return lambda images, labels, **options: write_dataset(tmp_path / "dataset", images, labels, **options)


@pytest.fixture
def gray_dataset(build_dataset: BuildDataset) -> Dataset:
    """23 gray JPEGs of odd sizes in 3 classes; train 12, val 7, test 4."""
    images = [encode_jpeg(speckled_picture(n, 131 + 7 * n, 97 + 5 * n)) for n in range(23)]
    splits = [("train", "val", "train", "test")[n % 4] if n < 16 else ("train", "val")[n % 2] for n in range(23)]
    labels = sorted(n % 3 for n in range(23))
    return build_dataset(images, labels, splits=splits)
