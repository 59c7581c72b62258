"""A small data set whose classes are bands of a picture, and launches on it, for tests and benches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from tests.end_to_end.commands import SMALL
from xdist_train.config import resolve_config
from xdist_train.training.launch import LaunchResult, launch

__all__ = ["Train", "build_train", "write_bands"]

Train = Callable[..., LaunchResult]


def write_bands(folder: Path) -> Dataset:
    """240 gray pictures, 3 classes by where a dark band lies: 144 train, 48 val, 48 test."""
    splits = ("train", "train", "train", "val", "test")
    images = []
    for number in range(240):
        picture = speckled_picture(number, 120, 100)
        picture[20 + 20 * (number // 80) : 40 + 20 * (number // 80)] //= 3
        images.append(encode_jpeg(picture))
    labels = [number // 80 for number in range(240)]
    return write_dataset(folder, images, labels, splits=[splits[number % 5] for number in range(240)])


def build_train(dataset: Dataset, storage: Path) -> Train:
    """`launch` of a run that takes seconds, by its name and overrides."""

    def train(name: str, *overrides: str) -> LaunchResult:
        config = resolve_config(
            "demo",
            [
                f"data.uri={dataset.store.uri}",
                f"storage.uri={storage}",
                f"run.name={name}",
                f"loader.cache_dir={storage}/cache",
                *SMALL,
                *overrides,
            ],
        )
        return launch(config, command="test", console=Console(quiet=True))

    return train
