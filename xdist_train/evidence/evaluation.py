"""Evaluation of a published model on a split: answers, figures, predictions, and their place in the run folder.

Serves the end of a training (answers come from its workers) and `evaluate` (this process answers).
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.config import load_config
from cluster.errors import InputError
from cluster.runs import RUN, evaluation_key, is_silent, predictions_key, read_config, read_record
from cluster.store import Store, open_store
from cluster.world import World
from dataloading.config import LoaderConfig
from dataloading.dataset import SPLITS, Dataset, open_dataset
from dataloading.loading.batch import Batch, normalise
from dataloading.loading.cache import Split, cache_root, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import evaluation_requests
from xdist_train.config import Config
from xdist_train.evidence.evaluate import evaluation_report, predictions_table
from xdist_train.evidence.inference import Answers, infer, softmax
from xdist_train.models.backbones import require_channels
from xdist_train.models.export import ModelDescription, load_model, require_same_classes
from xdist_train.models.precision import resolve_precision
from xdist_train.models.prior import PriorShift

__all__ = ["Evidence", "build_evidence", "run_evaluation", "view_config"]

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


def run_evaluation(model_uri: str, split: str, data_uri: str = "") -> dict[str, Any]:
    """Evaluate the model of a run or of a bare model folder in this process.

    For a run that has ended, its own precision and bootstrap are used, and figures and predictions are
    written into its folder. A bare model is evaluated in the precision of its weights.

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
    record = read_record(store) if is_run else {}
    if is_run and record["status"] == "running" and not is_silent(record):
        raise InputError(f"{model_uri!r} is still running (see `xdist-train runs`). Evaluate it when it has ended.")
    model, description = load_model(model_uri)
    config = load_config(Config, [read_config(store)]) if is_run else None
    if not (config or data_uri):
        raise InputError(f"{model_uri!r} is a bare model folder: say what to evaluate it on, --data DATASET.")
    dataset = open_dataset(data_uri or (config.data.uri if config else ""))
    require_same_classes(description, dataset.info.classes, dataset.store.uri)
    require_channels(description.model, dataset.info.channels, dataset.store.uri)
    settings = config or Config()
    rows = open_split(dataset, description.split, split, cache_root(settings.loader.cache_dir))
    answers = _answers(model, description, dataset, rows, settings.train.precision if config else "float32")
    evidence = build_evidence(dataset, rows, answers, prior=description.prior, resamples=settings.evaluate.bootstrap)
    if is_run and dataset.info.fingerprint == description.fingerprint:
        _write(store, split, evidence)
    return evidence.report


def view_config(description: ModelDescription, base: LoaderConfig | None = None) -> LoaderConfig:
    """The loader's configuration that shows pictures as the model was trained to see them; the rest is `base`'s."""
    facts = description.preprocessing
    fit = cast(Literal["stretch", "crop"], facts.fit)
    tolerance = facts.reduce_tolerance
    return replace(base or LoaderConfig(), image_size=facts.image_size, fit=fit, reduce_tolerance=tolerance)


def _answers(
    model: torch.nn.Module,
    description: ModelDescription,
    dataset: Dataset,
    split: Split,
    precision: str,
) -> Answers:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arithmetic, config = resolve_precision(precision, device), view_config(description)
    model = model.to(device)
    dtype = next(model.parameters()).dtype
    facts = description.preprocessing

    @torch.inference_mode()
    def logits(batch: Batch) -> Tensor:
        images, channels = batch.to(device).images, description.model.in_channels
        with arithmetic.context(device):
            output: Tensor = model(normalise(images, facts.mean, facts.std, channels, dtype, torch.contiguous_format))
        return output.to("cpu", dtype)

    threads = os.cpu_count() or 1
    with Loader(split, dataset.info, config, augment=None, seed=0, device=device, threads=threads) as loader:
        requests = evaluation_requests(split.num_images, _BATCH_SIZE, World())
        return infer(logits, loader.load(requests), len(description.classes)).map(Tensor.cpu).ordered()


def _write(store: Store, split: str, evidence: Evidence) -> None:
    objects = evidence.objects(split)
    for key, data in objects.items():
        store.write(key, data)
    record = read_record(store)
    record["complete"] = sorted({*record["complete"], *objects})
    record["test_evaluations"] += split == "test"
    store.write_json(RUN, record)
