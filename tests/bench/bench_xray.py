"""Real X-rays: recipe `xray` against a logistic regression on frozen features of the same backbone and split.

Patient split of seed 0, figures of its test patients; the spread is the 95 % interval over patients and n the
test images. The regression's strength is chosen on val, as the recipe's epoch is.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from cluster.store import open_store
from dataloading.config import PackConfig
from dataloading.dataset import open_dataset
from dataloading.packing.pack import run_pack
from tests.bench.results import BenchSkippedError, Row, versions
from xdist_train.config import Config, resolve_config
from xdist_train.evidence.evaluate import evaluation_report
from xdist_train.models.heads import find_head
from xdist_train.models.weights import resolve_weights
from xdist_train.training.assembly import Assembly
from xdist_train.training.launch import launch

__all__ = ["rows"]

COMMAND = "python -m tests.bench xray"
FIGURES = ("accuracy", "balanced_accuracy", "auroc_macro")


def rows() -> Iterable[Row]:
    """Figures of both, and the seconds of the training."""
    source = Path(os.environ.get("XDIST_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data") / "xray_real"
    if not source.is_dir():
        raise BenchSkippedError(f"no real X-rays under {source}; set XDIST_REAL_DATA")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        run_pack(source, open_store(f"{folder}/packed"), PackConfig(seed=0))
        config = resolve_config("xray", [f"data.uri={folder}/packed", f"storage.uri={folder}/runs", "run.name=xray"])
        started = time.perf_counter()
        result = launch(config, command=COMMAND, console=Console())
        seconds = time.perf_counter() - started
        frozen = _regression_report(config)
    yield _row("whole run: start, training, evaluation", seconds, (seconds, seconds), 1, "s", goal="< 600 s")
    for name in FIGURES:
        yield _figure_row("recipe xray", result.evaluations["test"], name, frozen)
        yield _figure_row("logistic regression on frozen features", frozen, name)


def _figure_row(who: str, report: dict[str, Any], name: str, against: dict[str, Any] | None = None) -> Row:
    figure = report[name]
    ratio = figure["value"] / against[name]["value"] if against else None
    spread = (figure["low"], figure["high"])
    row = _row(f"{who}: test {name}", figure["value"], spread, report["n_images"], "")
    return Row(**{**vars(row), "ratio": ratio, "against": "logistic regression" if against else ""})


def _row(what: str, value: float, spread: tuple[float, float], n: int, unit: str, goal: str = "") -> Row:
    packages = versions("torch", "timm", "ray", "scikit-learn")
    return Row(what=what, median=value, spread=spread, n=n, unit=unit, goal=goal, versions=packages, command=COMMAND)


def _regression_report(config: Config) -> dict[str, Any]:
    from cluster.world import World

    dataset = open_dataset(config.data.uri)
    stored = resolve_weights(config.model.weights, config.model.backbone, open_store(config.storage.uri))
    assembly = Assembly(config, dataset, world=World(), device=torch.device("cpu"), micro_batch_size=32, weights=stored)
    features = _features(assembly)
    scaler = StandardScaler().fit(features["train"][0])
    scaled = {name: (scaler.transform(values), labels) for name, (values, labels) in features.items()}
    candidates = [LogisticRegression(C=c, max_iter=5000).fit(*scaled["train"]) for c in 10.0 ** np.arange(-5, 2)]
    best = max(candidates, key=lambda model: model.score(*scaled["val"]))
    values, labels = scaled["test"]
    patients = dataset.read_manifest(["patient"])["patient"].to_numpy()
    ids = assembly.splits["test"].ids(np.arange(len(labels)))
    return evaluation_report(labels, best.predict_proba(values), patients[ids].tolist(), dataset.info.classes)


def _features(assembly: Assembly) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the head would see, and labels, of each split in row order."""
    model = assembly.learner.model
    name, _ = find_head(model)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    answers = {split: assembly.answers(split) for split in ("train", "val", "test")}
    assembly.close()
    return {split: (answer.logits.numpy(), answer.labels.numpy()) for split, answer in answers.items()}
