"""A real Ray cluster for the session, and small runs on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataloading.dataset import Dataset
from tests.end_to_end.small import Train, build_train, write_bands


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
    return write_bands(tmp_path_factory.mktemp("data") / "bands")


@pytest.fixture(scope="session")
def whole_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage folder that all launches of `train` share."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def train(ray_cluster: Any, bands: Dataset, whole_storage: Path) -> Train:
    """`launch` of a small run on `bands`."""
    return build_train(bands, whole_storage)
