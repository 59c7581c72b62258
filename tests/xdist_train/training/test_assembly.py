"""A whole small training in one process, from packed pictures to answers for files: outputs and input as configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from cluster.store import open_store
from cluster.world import World
from dataloading.dataset import Dataset
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from tests.end_to_end.commands import SMALL
from tests.xdist_train.training.ranks import FolderReporter
from xdist_train.config import Config, ModelConfig, resolve_config
from xdist_train.evidence.evaluation import build_evidence, run_evaluation
from xdist_train.evidence.predict import predict_images
from xdist_train.models.backbones import Normalisation
from xdist_train.models.export import ModelDescription, save_model
from xdist_train.models.weights import StoredWeights, resolve_weights
from xdist_train.training.assembly import Assembly, _input_view
from xdist_train.training.loop import run_loop
from xdist_train.training.state import TrainState


class _Trained(NamedTuple):
    """What a training left: its model folder, val figures by epoch, and its own figures of test."""

    model_uri: str
    description: ModelDescription
    figures: list[float]
    test: dict[str, object]
    columns: np.ndarray
    """Probabilities of test, [n, 2]."""


def _picture(number: int, dark: bool) -> np.ndarray:
    """Speckles with a dark band above or below the middle."""
    picture = speckled_picture(number, 80, 64)
    picture[10:26] //= 3 if dark else 1
    picture[38:54] //= 1 if dark else 3
    return picture


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """150 gray pictures, 50 and 100 of two classes by where a band lies; a fifth each is val and test."""
    images = [encode_jpeg(_picture(number, number < 50)) for number in range(150)]
    splits = ("train", "train", "train", "val", "test")
    return write_dataset(
        tmp_path_factory.mktemp("two"),
        images,
        [int(number >= 50) for number in range(150)],
        splits=[splits[number % 5] for number in range(150)],
    )


@pytest.fixture(scope="module")
def train(two_classes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., _Trained]:
    """Train by overrides, without Ray, and publish the last epoch's weights."""

    def run(*overrides: str) -> _Trained:
        folder = tmp_path_factory.mktemp("run")
        config = resolve_config(
            "demo",
            [*SMALL, f"data.uri={two_classes.store.uri}", "data.split=given", f"loader.cache_dir={folder}/cache",
             f"storage.uri={folder}",
             "train.epochs=6", "train.batch_size=30", "train.precision=float32", *overrides],
        )  # fmt: skip
        assembly = Assembly(
            config,
            two_classes,
            world=World(),
            device=torch.device("cpu"),
            micro_batch_size=30,
            weights=resolve_weights(config.model.weights, config.model.backbone, open_store(config.storage.uri)),
        )
        try:
            outcome = run_loop(assembly.job, TrainState(), FolderReporter())
            assert outcome.state.selection is not None, outcome.failure
            described = assembly.describe(outcome.state.selection)
            evidence = build_evidence(
                two_classes, assembly.splits["test"], assembly.answers("test"), prior=assembly.prior, resamples=100
            )
        finally:
            assembly.close()
        description = save_model(open_store(str(folder)), assembly.learner.judged.state_dict(), described)
        columns = [evidence.predictions[f"probability_{name}"].to_numpy() for name in two_classes.info.classes]
        rows = [row for row in outcome.state.history if row["kind"] == "epoch"]
        figures = [row["val_auroc_macro"] for row in rows]
        return _Trained(str(folder / "model"), description, figures, evidence.report, np.stack(columns, axis=1))

    return run


def _same_afterwards(trained: _Trained, data: Dataset, folder: Path) -> None:
    """The published model answers as the one in training did: for the packed split, and for a file."""
    report = run_evaluation(trained.model_uri, "test", data.store.uri)
    for name in ("accuracy", "auroc_macro"):
        assert report[name]["value"] == pytest.approx(trained.test[name]["value"])
    assert report["ece"]["value"] == pytest.approx(trained.test["ece"]["value"], abs=1e-5)
    path = folder / "first.jpg"
    path.write_bytes(encode_jpeg(_picture(4, True)))  # the first image of test
    (prediction,) = predict_images(trained.model_uri, [path])
    assert list(prediction.probabilities.values()) == pytest.approx(trained.columns[0].tolist(), abs=1e-4)


def test_a_network_with_one_logit_learns(train: Callable[..., _Trained], two_classes: Dataset, tmp_path: Path) -> None:
    """Under weighted binary cross-entropy two classes are told apart, in two columns that add up to 1, and the
    published model says the same."""
    trained = train("model.outputs=sigmoid", "loss.class_weights=complement")
    assert trained.figures[-1] > 0.95
    assert trained.columns.shape == (30, 2)
    np.testing.assert_allclose(trained.columns.sum(axis=1), 1, atol=1e-12)
    assert trained.description.prior is not None
    assert trained.description.prior.learned == pytest.approx((0.5, 0.5))
    _same_afterwards(trained, two_classes, tmp_path)


def test_the_average_is_what_is_published(train: Callable[..., _Trained], two_classes: Dataset, tmp_path: Path) -> None:
    """Figures in training are those of the average, and the published model says the same."""
    trained = train("train.ema_decay=0.5")
    assert trained.figures[-1] > 0.95
    _same_afterwards(trained, two_classes, tmp_path)


def test_pixels_decoded_once_are_those_that_files_give_afterwards(
    train: Callable[..., _Trained], two_classes: Dataset, tmp_path: Path
) -> None:
    """Training and its figures from the cache, evaluation and prediction from encoded pictures: the same."""
    trained = train("loader.cache=pixels", "train.mixup=0.2")
    assert trained.figures[-1] > 0.95
    _same_afterwards(trained, two_classes, tmp_path)


def test_pictures_by_their_own_figures_are_so_everywhere(
    train: Callable[..., _Trained], two_classes: Dataset, tmp_path: Path
) -> None:
    """Training, evaluation and prediction of files standardise each picture, as model.json says."""
    trained = train("loader.normalise=image")
    facts = trained.description.preprocessing
    assert (facts.normalise, facts.mean, facts.std) == ("image", (), ())
    assert trained.figures[-1] > 0.95
    _same_afterwards(trained, two_classes, tmp_path)


def test_weights_of_a_run_bring_its_normalisation(train: Callable[..., _Trained]) -> None:
    """A run that starts from one that took each picture by its own figures does so too."""
    first = train("loader.normalise=image", "train.epochs=1")
    second = train(f"model.weights={first.model_uri}", "train.epochs=1")
    assert "image" == second.description.preprocessing.normalise


@pytest.mark.parametrize("normalise", ["auto", "image"])
def test_a_network_of_one_channel_learns(
    train: Callable[..., _Trained], two_classes: Dataset, tmp_path: Path, normalise: str
) -> None:
    """Gray goes in as it is, in training, evaluation and prediction."""
    trained = train("model.in_channels=1", f"loader.normalise={normalise}")
    assert 1 == trained.description.model.in_channels
    assert trained.figures[-1] > 0.95
    _same_afterwards(trained, two_classes, tmp_path)


def test_one_channel_starts_from_weights_of_three(train: Callable[..., _Trained]) -> None:
    """Trained on without a step that moves anything, its answers are those of the network that it started from."""
    first = train("train.epochs=2", "model.norm=group")
    still = ("train.epochs=1", "model.norm=group", "optim.lr=1e-12", f"model.weights={first.model_uri}")
    three, one = train(*still), train(*still, "model.in_channels=1")
    np.testing.assert_allclose(one.columns, three.columns, atol=1e-5)


def test_three_figures_become_one_for_one_channel(two_classes: Dataset) -> None:
    """Weights that were trained with a mean and deviation a channel leave their means to the sum of channels."""
    weights = StoredWeights("", "", Normalisation((0.3, 0.4, 0.8), (0.1, 0.2, 0.3)))
    views = [_input_view(two_classes, Config(model=ModelConfig(in_channels=channels)), weights) for channels in (3, 1)]
    assert [3, 1] == [len(view.mean) for view in views]
    assert (*views[1].mean, *views[1].std) == pytest.approx((0.5, 0.2))
