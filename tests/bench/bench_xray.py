"""Real X-rays, five folds by patient: recipe `xray` against frozen features, and against no pretraining.

What is pooled over the folds answers for each image once, by a model that saw no image of its patient. The spread of a
figure is its 95 % interval over patients, that of a difference comes from the same resamples of both (paired), and n is
the images. The regression sees the features of the recipe's own backbone before any training; its strength is chosen
on val, and it then learns from train and val, so it has more images than the recipe, which keeps val to select by.
The recipe answers by the mean of three seeds' models, as `xdist-train repeat` pools them; each seed alone is a row too.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from cluster.store import open_store
from cluster.world import World
from dataloading.config import PackConfig
from dataloading.dataset import SPLITS, Dataset, open_dataset
from dataloading.packing.pack import run_pack
from dataloading.splits import SPLIT_COLUMNS, split_of
from tests.bench.results import BenchSkippedError, Row, versions
from tune_spaces.pooling import join_folds
from tune_spaces.repeat import run_repetition
from tune_spaces.repetition import PARTS
from xdist_train.config import resolve_config
from xdist_train.evidence.answers import read_answers
from xdist_train.evidence.metrics import Scores, differences, intervals, point_figures
from xdist_train.models.heads import find_head
from xdist_train.models.weights import resolve_weights
from xdist_train.training.assembly import Assembly

__all__ = ["rows"]

COMMAND = "python -m tests.bench xray"
FIGURES = ("accuracy", "balanced_accuracy", "auroc_macro")
FOLDS = 5
SEEDS = (0, 1, 2)
OURS, SINGLE = f"recipe xray, mean of {len(SEEDS)} seeds", "recipe xray, seed 0 alone"
FROZEN, SCRATCH = "logistic regression on frozen features", "recipe xray, model.weights=none, seed 0 alone"
_STRENGTHS = 10.0 ** np.arange(-5, 1)


def rows() -> Iterable[Row]:
    """Figures of the three, paired differences, and how long the trainings took."""
    source = Path(os.environ.get("XDIST_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data") / "xray_real"
    if not source.is_dir():
        raise BenchSkippedError(f"no real X-rays under {source}; set XDIST_REAL_DATA")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        # Less val than usual: the images are few, and the regression gets those of val too.
        run_pack(source, open_store(f"{folder}/packed"), PackConfig(seed=0, fractions=(0.72, 0.08, 0.2)))
        dataset = open_dataset(f"{folder}/packed")
        patients = dataset.read_manifest(["patient"])["patient"].to_numpy()
        ours, seconds = _trained(folder, "pretrained", SEEDS, [], patients)
        scratch, scratch_seconds = _trained(folder, "scratch", SEEDS[:1], ["model.weights=none"], patients)
        frozen = _regression(folder, dataset, patients)
    single, scratched = ours.seeds[0], scratch.pooled
    yield _time_row(f"{OURS}: {FOLDS} folds, start to pooled figures", seconds)
    yield _time_row(f"{SCRATCH}: the same", scratch_seconds)
    for name in FIGURES:
        goal = ">= 0.82 (paper: 0.870, folds not by patient)" if name == "accuracy" else ""
        yield _figure_row(OURS, ours.pooled, name, goal=goal)
        yield _seeds_row(ours, name)
        yield _figure_row(SINGLE, single, name)
        yield _figure_row(FROZEN, frozen, name)
        yield _figure_row(SCRATCH, scratched, name)
        goal = "interval above 0" if name == "accuracy" else ""
        yield _difference_row(OURS, ours.pooled, FROZEN, frozen, name, goal)
        yield _difference_row(SINGLE, single, FROZEN, frozen, name, "")
        yield _difference_row(SINGLE, single, SCRATCH, scratched, name, goal)


@dataclass(frozen=True)
class _Repeated:
    """What a repetition says of all images, in order of id: its seeds together, and each alone."""

    pooled: Scores
    seeds: tuple[Scores, ...]


def _trained(
    folder: str, name: str, seeds: Sequence[int], overrides: list[str], patients: NDArray[np.object_]
) -> tuple[_Repeated, float]:
    """Figures over all folds, and the seconds that they took."""
    started = time.perf_counter()
    result = run_repetition(
        "xray",
        [
            f"data.uri={folder}/packed",
            f"storage.uri={folder}/runs",
            f"run.name={name}",
            f"folds={FOLDS}",
            f"seeds={list(seeds)}",
            *overrides,
        ],
        command=COMMAND,
        console=Console(),
    )
    seconds = time.perf_counter() - started
    ids = np.arange(len(patients))
    pooled = join_folds({name: read_answers(open_store(result.uri), "test")}, ids)
    of_seeds = [
        join_folds({fold: read_answers(open_store(f"{result.uri}/{PARTS}/{fold}"), "test") for fold in folds}, ids)
        for folds in ([f"fold{number}-seed{seed}" for number in range(FOLDS)] for seed in seeds)
    ]
    return _Repeated(pooled.scores(patients), tuple(seed.scores(patients) for seed in of_seeds)), seconds


def _regression(folder: str, dataset: Dataset, patients: NDArray[np.object_]) -> Scores:
    """The same of a regression, on the same folds."""
    features, labels = _features(folder, dataset)
    manifest = dataset.read_manifest(list(SPLIT_COLUMNS))
    said = np.zeros((len(labels), len(dataset.info.classes)))
    for fold in range(FOLDS):
        parts = split_of(manifest, f"fold:{fold}/{FOLDS}", dataset.info.fractions, dataset.info.seed)
        train, val, test = (parts == number for number in range(len(SPLITS)))
        fits = {strength: _fit(features[train], labels[train], strength) for strength in _STRENGTHS}
        best = max(fits, key=lambda strength: fits[strength].score(features[val], labels[val]))
        said[test] = _fit(features[~test], labels[~test], best).predict_proba(features[test])
    return Scores.of(labels, said, patients)


def _fit(features: NDArray[np.float32], labels: NDArray[np.int64], strength: float):  # type: ignore[no-untyped-def]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
    return model.fit(features, labels)


def _features(folder: str, dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the head would see before training, and labels, in order of id."""
    # Without an average of the weights, which would be asked instead, with its own head.
    config = resolve_config("xray", [f"data.uri={folder}/packed", f"storage.uri={folder}/runs", "train.ema_decay=0"])
    stored = resolve_weights(config.model.weights, config.model.backbone, open_store(config.storage.uri))
    assembly = Assembly(config, dataset, world=World(), device=torch.device("cpu"), micro_batch_size=32, weights=stored)
    model = assembly.learner.model
    parent, _, child = find_head(model)[0].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    answers = {split: assembly.answers(split) for split in SPLITS}
    ids = [assembly.splits[split].ids(np.arange(len(answers[split].labels))) for split in SPLITS]
    assembly.close()
    order = np.argsort(np.concatenate(ids))
    features = np.concatenate([answer.logits.numpy() for answer in answers.values()])
    return features[order], np.concatenate([answer.labels.numpy() for answer in answers.values()])[order]


def _time_row(what: str, seconds: float) -> Row:
    return _row(what, seconds, (seconds, seconds), 1, "s")


def _figure_row(who: str, scores: Scores, name: str, goal: str = "") -> Row:
    figure = intervals(scores, tuple(map(str, range(scores.num_classes))))[name]
    spread = (float(figure["low"]), float(figure["high"]))
    return _row(f"{who}: {name}", float(figure["value"]), spread, len(scores.labels), "", goal)


def _seeds_row(ours: _Repeated, name: str) -> Row:
    values = [float(point_figures(scores)[name] or 0) for scores in ours.seeds]
    return _row(f"single seeds of it: {name}", float(np.median(values)), (min(values), max(values)), len(values), "")


def _difference_row(who: str, ours: Scores, other: str, theirs: Scores, name: str, goal: str) -> Row:
    figure = differences(theirs, ours)[name]
    value, low, high = (float(figure[key] or 0) for key in ("value", "low", "high"))
    return _row(f"{who} minus {other}: {name}", value, (low, high), len(ours.labels), "", goal)


def _row(what: str, value: float, spread: tuple[float, float], n: int, unit: str, goal: str = "") -> Row:
    packages = versions("torch", "timm", "ray", "scikit-learn")
    return Row(what=what, median=value, spread=spread, n=n, unit=unit, goal=goal, versions=packages, command=COMMAND)
