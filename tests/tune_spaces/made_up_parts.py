"""Repetitions without a training: a small data set, what parts leave of it, and a start that runs them at once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import dump_yaml
from cluster.runs import RunFolder
from cluster.store import open_store
from dataloading.dataset import SPLITS, Dataset
from dataloading.splits import SPLIT_COLUMNS, split_of
from tests.dataloading.loading.packed import encode_jpeg, speckled_picture, write_dataset
from tests.records import RECORD
from tests.xdist_train.evidence.made_up_run import draw_answers
from tune_spaces.parts import Part, plan_parts
from tune_spaces.repetition import RepeatPlan, Repetition
from tune_spaces.task import Task
from xdist_train.config import resolve_config
from xdist_train.evidence.answers import SplitAnswers
from xdist_train.evidence.evaluate import evaluation_report, predictions_table
from xdist_train.evidence.evaluation import Evidence
from xdist_train.training.record import RunRecord, first_record

NUM_IMAGES = 36


def write_small(folder: Path, *, splits: Sequence[str] = ("train", "train", "val", "test")) -> Dataset:
    """36 images of 3 classes, each of a patient of its own; `splits` are the set's own, in turn."""
    picture = encode_jpeg(speckled_picture(0, 16, 16))
    given = [splits[number % len(splits)] for number in range(NUM_IMAGES)]
    return write_dataset(folder, [picture] * NUM_IMAGES, [number // 12 for number in range(NUM_IMAGES)], splits=given)


def ids_of(dataset: Dataset, split: str, part: str = "test") -> np.ndarray:
    """Images of a part under a value of `data.split`."""
    manifest = dataset.read_manifest(list(SPLIT_COLUMNS))
    return np.flatnonzero(split_of(manifest, split, dataset.info.fractions, dataset.info.seed) == SPLITS.index(part))


def answer(dataset: Dataset, ids: Sequence[int] | np.ndarray, seed: int = 0, prior: Any = None) -> SplitAnswers:
    """What a model of this seed said of some images."""
    labels = dataset.read_manifest(["label"])["label"].to_numpy()[np.asarray(ids)].astype(np.int64)
    probabilities = draw_answers(seed, labels, 1.5)
    patients = [f"p{image}" for image in ids]
    report = evaluation_report(labels, probabilities, patients, dataset.info.classes, prior=prior, resamples=100)
    sources = tuple(f"{image}.jpeg" for image in ids)
    return SplitAnswers("test", report, dataset.info.classes, np.asarray(ids), sources, labels, probabilities)


def write_part(folder: RunFolder, task: Task, dataset: Dataset, status: str = "finished", **record: Any) -> None:
    """What a launch leaves of a part."""
    run = folder.store.child(task.place).child(task.name)
    keys = []
    if status == "finished":
        mine = answer(dataset, ids_of(dataset, task.config.data.split), task.config.train.seed)
        table = predictions_table(mine.ids, mine.sources, mine.labels, mine.probabilities, mine.classes)
        for key, data in Evidence(mine.report, table).objects("test").items():
            run.write(key, data)
            keys.append(key)
    selected = {"epoch": 1, "step": 2, "metric": "balanced_accuracy", "value": 0.8}
    values = {"status": status, "selected": selected, "seconds": {}, "worker_seconds": 10.0, "epochs": 2}
    run.write("config.yaml", dump_yaml(task.config).encode())
    run.write_json("run.json", {**RECORD, **values, "complete": keys, **record})


def open_repetition(
    storage: Path,
    dataset: Dataset,
    *,
    folds: int = 3,
    splits: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    concurrency: int = 1,
    **options: Any,
) -> Repetition:
    """A start of repetition `r`, with what earlier starts left."""
    overrides = [f"data.uri={dataset.store.uri}", f"storage.uri={storage}", "run.name=r", "evaluate.bootstrap=100"]
    config = resolve_config("demo", overrides)
    folder = RunFolder(open_store(str(storage)).child("r"), driver=uuid.uuid4().hex)
    plan = RepeatPlan(
        name="r",
        config=config,
        parts=plan_parts(folds, splits, seeds),
        concurrency=concurrency,
        use_gpu=False,
    )
    earlier, number = folder.read_record(), folder.claim()
    folder.publish("config.yaml", dump_yaml(config).encode())
    record: RunRecord = first_record(
        folder,
        earlier,
        command="xdist-train repeat demo",
        fingerprint=dataset.info.fingerprint,
        split="3 folds by patient",
        identity={},
        attempt=number,
        metric="balanced_accuracy",
        group_starts=0,
        epochs=2,
        stopped_early=False,
        workers=1,
        hardware={"host": "node-1"},
    )
    record.write()
    return Repetition(plan, record, **options)


def run_parts(repetition: Repetition, dataset: Dataset, *, failing: Sequence[str] = (), limit: int = 1000) -> list[str]:
    """All that it wants run, at most so many; their names."""
    names = []
    while len(names) < limit and (task := repetition.next()):
        reason = {"kind": "non_finite_loss", "message": "the loss is NaN"}
        failed = {"status": "failed", "reason": reason} if task.name in failing else {}
        write_part(repetition.folder, task, dataset, **failed)
        repetition.end(task.name)
        names.append(task.name)
    return names


def part_of(repetition: Repetition, name: str) -> Part:
    """A part by its name."""
    return next(part for part in repetition.plan.parts if part.name == name)


def record_of(repetition: Repetition) -> dict[str, Any]:
    """`run.json` as it lies in its folder."""
    return dict(json.loads(repetition.folder.store.read("run.json")))
