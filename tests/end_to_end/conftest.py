"""A real Ray cluster for the session, and a small data set whose classes are bands of a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from xdist_train.config import resolve_config
from xdist_train.training.launch import LaunchResult, launch

Train = Callable[..., LaunchResult]


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """4 logical CPUs on this machine, for all tests of the session; launches join it."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # Ray's sockets lie below it and may not have long paths.
        _temp_dir=str(tmp_path_factory.mktemp("r").resolve()),
        object_store_memory=200 * 2**20,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """240 gray pictures, 3 classes by where a dark band lies: 144 train, 48 val, 48 test."""
    splits = ("train", "train", "train", "val", "test")
    images = []
    for number in range(240):
        picture = speckled_picture(number, 120, 100)
        picture[20 + 20 * (number // 80) : 40 + 20 * (number // 80)] //= 3
        images.append(encode_jpeg(picture))
    folder = tmp_path_factory.mktemp("data") / "bands"
    labels = [number // 80 for number in range(240)]
    return write_dataset(folder, images, labels, splits=[splits[number % 5] for number in range(240)])


@pytest.fixture(scope="session")
def whole_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage folder that all launches of `train` share."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def train(ray_cluster: Any, bands: Dataset, whole_storage: Path) -> Train:
    """`launch` of a small run on `bands`."""
    storage = whole_storage

    def start(name: str, *overrides: str) -> LaunchResult:
        config = resolve_config(
            "demo",
            [
                f"data.uri={bands.store.uri}",
                f"storage.uri={storage}",
                f"run.name={name}",
                f"loader.cache_dir={storage}/cache",
                "loader.image_size=64",
                "train.epochs=2",
                "train.batch_size=48",
                "schedule.name=step",
                "schedule.warmup_epochs=0",
                "evaluate.bootstrap=100",
                *overrides,
            ],
        )
        return launch(config, command="test", console=Console(quiet=True))

    return start
