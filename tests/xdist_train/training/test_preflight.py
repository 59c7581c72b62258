"""What is refused before a run is there: settings of the model that do not go with the data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from xdist_train.config import Config, resolve_config
from xdist_train.training.preflight import Prepared, prepare


def _dataset(folder: Path, num_classes: int, channels: int) -> Dataset:
    """10 images a class, 6 of them train and 2 each val and test."""
    size = 10 * num_classes
    images = [encode_jpeg(speckled_picture(number, 40, 40, channels)) for number in range(size)]
    splits = ("train", "train", "train", "val", "test")
    labels = [number // 10 for number in range(size)]
    return write_dataset(
        folder / "data", images, labels, channels=channels, splits=[splits[number % 5] for number in range(size)]
    )


def _prepared(folder: Path, num_classes: int, channels: int, *overrides: str) -> Prepared:
    dataset = _dataset(folder, num_classes, channels)
    settings = [f"data.uri={dataset.store.uri}", "data.split=given", f"storage.uri={folder}/runs",
                f"loader.cache_dir={folder}/cache", "train.batch_size=4", *overrides]  # fmt: skip
    config: Config = resolve_config("demo", settings)
    return prepare(config, "test")


@pytest.mark.parametrize(
    ("num_classes", "channels", "override", "message"),
    [
        (3, 1, "model.outputs=sigmoid", r"model\.outputs=sigmoid is one logit.* here are 3"),
        (2, 3, "model.in_channels=1", r"model\.in_channels=1 takes gray pictures.* have 3 channels"),
    ],
)
def test_a_model_that_does_not_go_with_the_set_is_refused(
    tmp_path: Path, num_classes: int, channels: int, override: str, message: str
) -> None:
    """One logit for three classes, one channel for coloured pictures."""
    with pytest.raises(InputError, match=message):
        _prepared(tmp_path, num_classes, channels, override)


def test_what_goes_with_the_set_is_taken(tmp_path: Path) -> None:
    """One logit and one channel for two classes of gray pictures; both are identity."""
    prepared = _prepared(tmp_path, 2, 1, "model.outputs=sigmoid", "model.in_channels=1", "loader.normalise=image")
    same = prepared.identity
    assert ("sigmoid", 1, "image") == (same["model.outputs"], same["model.in_channels"], same["loader.normalise"])
