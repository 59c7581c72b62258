"""Evaluation of a published model on a split: answers, figures, predictions, and their place in the run folder.

Serves the end of a training (answers come from its workers) and `evaluate` (this process answers).
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.config import parse_layer
from cluster.errors import InputError
from cluster.runs import CONFIG, RUN, evaluation_key, predictions_key
from cluster.store import Store, open_store
from cluster.world import World
from dataloading.config import LoaderConfig
from dataloading.dataset import SPLITS, Dataset, open_dataset
from dataloading.loading.batch import Batch, normalise
from dataloading.loading.cache import Split, cache_root, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import evaluation_requests
from xdist_train.evidence.evaluate import evaluation_report, predictions_table
from xdist_train.evidence.inference import Answers, infer, softmax
from xdist_train.models.backbones import INPUT_CHANNELS
from xdist_train.models.export import ModelDescription, load_model, require_same_classes
from xdist_train.models.prior import PriorShift

__all__ = ["Evidence", "build_evidence", "run_evaluation"]

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Evidence:
    """Figures and predictions of one split."""

    report: dict[str, Any]
    predictions: pa.Table

    def objects(self, split: str) -> dict[str, bytes]:
        """The objects of the run folder by key; predictions first, the figures name them."""
        buffer = io.BytesIO()
        pq.write_table(self.predictions, buffer)
        report = json.dumps(self.report, indent=2) + "\n"
        return {predictions_key(split): buffer.getvalue(), evaluation_key(split): report.encode()}


def build_evidence(
    dataset: Dataset, split: Split, answers: Answers, *, prior: PriorShift | None, resamples: int
) -> Evidence:
    """Figures with intervals over patients, and a row an image.

    Args:
        answers: of every image of the split, in row order.
        prior: what training did to the classes' shares.
        resamples: of the bootstrap.
    """
    classes, labels, probabilities = dataset.info.classes, answers.labels.numpy(), softmax(answers.logits)
    ids = split.ids(answers.rows.numpy())
    rows = dataset.read_manifest(["source", "patient"]).take(pa.array(ids))
    report = evaluation_report(
        labels, probabilities, rows["patient"].to_pylist(), classes, prior=prior, resamples=resamples
    )
    table = predictions_table(ids, rows["source"].to_pylist(), labels, probabilities, classes)
    return Evidence(report, table)


def run_evaluation(model_uri: str, split: str, data_uri: str = "", resamples: int = 1000) -> dict[str, Any]:
    """Evaluate the model of a run or of a bare model folder in this process.

    For a run that has ended, figures and predictions are written into its folder.

    Args:
        split: train, val or test, by the split that the model was trained with.
        data_uri: packed dataset; empty takes the run's own.

    Raises:
        InputError: no model, no data, other classes, or a run that is still going on.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split!r}: splits are {', '.join(SPLITS)}.")
    store = open_store(model_uri)
    is_run = store.exists(RUN)
    if is_run and store.read_json(RUN)["status"] == "running":
        raise InputError(f"{model_uri!r} is still running (see `xdist-train runs`). Evaluate it when it has ended.")
    model, description = load_model(model_uri)
    dataset = open_dataset(data_uri or _own_data(store, is_run, model_uri))
    require_same_classes(description, dataset.info.classes, dataset.store.uri)
    loader = _loader_config(description)
    rows = open_split(dataset, description.split, split, cache_root(loader.cache_dir))
    answers = _answers(model, description, dataset, rows, loader)
    evidence = build_evidence(dataset, rows, answers, prior=description.prior, resamples=resamples)
    if is_run and dataset.info.fingerprint == description.fingerprint:
        _write(store, split, evidence)
    return evidence.report


def _own_data(store: Store, is_run: bool, uri: str) -> str:
    if not is_run:
        raise InputError(f"{uri!r} is a bare model folder: say what to evaluate it on, --data DATASET.")
    return str(parse_layer(store.read(CONFIG), store.locate(CONFIG)).values["data"]["uri"])


def _loader_config(description: ModelDescription) -> LoaderConfig:
    facts = description.preprocessing
    fit = cast(Literal["stretch", "crop"], facts.fit)
    return LoaderConfig(image_size=facts.image_size, fit=fit, reduce_tolerance=facts.reduce_tolerance)


def _answers(
    model: torch.nn.Module,
    description: ModelDescription,
    dataset: Dataset,
    split: Split,
    config: LoaderConfig,
) -> Answers:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    dtype = next(model.parameters()).dtype
    facts = description.preprocessing

    @torch.inference_mode()
    def logits(batch: Batch) -> Tensor:
        images = normalise(batch.to(device).images, facts.mean, facts.std, INPUT_CHANNELS, dtype)
        output: Tensor = model(images.contiguous())
        return output.cpu()

    threads = os.cpu_count() or 1
    with Loader(split, dataset.info, config, augment=None, seed=0, device=device, threads=threads) as loader:
        requests = evaluation_requests(split.num_images, _BATCH_SIZE, World())
        return infer(logits, loader.load(requests), len(description.classes)).map(Tensor.cpu).ordered()


def _write(store: Store, split: str, evidence: Evidence) -> None:
    objects = evidence.objects(split)
    for key, data in objects.items():
        store.write(key, data)
    record = store.read_json(RUN)
    record["complete"] = sorted({*record["complete"], *objects})
    record["test_evaluations"] += split == "test"
    store.write_json(RUN, record)
