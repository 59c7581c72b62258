"""Finished runs without a training: labels and probabilities are drawn, figures and files are what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cluster.config import dump_yaml
from cluster.store import Store, open_store
from xdist_train.config import resolve_config
from xdist_train.evidence.evaluate import evaluation_report, predictions_table
from xdist_train.evidence.evaluation import Evidence

__all__ = ["CLASSES", "draw_answers", "write_cam", "write_run"]

CLASSES = ("CNV", "DME", "NORMAL")


def draw_answers(seed: int, labels: Any, skill: float, num_classes: int = 3) -> Any:
    """Probabilities [n, K] that are right the more often the greater the skill."""
    labels = np.asarray(labels)
    logits = np.random.default_rng(seed).normal(0, 1, (len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += skill
    powers = np.exp(2 * logits)
    return powers / powers.sum(axis=1, keepdims=True)


def write_run(
    folder: Path,
    *,
    skill: float = 1.5,
    seed: int = 0,
    num_images: int = 300,
    images_a_patient: int = 3,
    classes: Sequence[str] = CLASSES,
    sources: Sequence[str] | None = None,
    data_uri: str = "nowhere",
    ids: Sequence[int] | None = None,
    splits: Sequence[str] = ("val", "test"),
    **record: Any,
) -> Store:
    """A run folder with predictions and figures of val and test; labels and ids are equal for all seeds."""
    store = open_store(str(folder))
    config = resolve_config("demo", [f"data.uri={data_uri}", f"run.name={folder.name}"])
    store.write("config.yaml", dump_yaml(config).encode())
    keys = ["config.yaml", "metrics.jsonl"]
    for number, split in enumerate(splits):
        labels = np.arange(num_images) % len(classes)
        chosen = np.arange(num_images) + 10_000 * number if ids is None else np.asarray(ids)
        probabilities = draw_answers(seed + 100 * number, labels, skill, len(classes))
        patients = [f"p{image // images_a_patient}" for image in chosen]
        report = evaluation_report(labels, probabilities, patients, classes, resamples=100)
        names = sources or [f"{split}/{classes[k]}/{classes[k]}-{i}.jpeg" for i, k in enumerate(labels)]
        table = predictions_table(chosen, names, labels, probabilities, classes)
        for key, data in Evidence(report, table).objects(split).items():
            store.write(key, data)
            keys.append(key)
    store.write("metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in _history()).encode())
    values = {
        "schema": 1,
        "status": "finished",
        "selected": {"epoch": 2, "step": 36, "metric": "balanced_accuracy", "value": 0.9},
        "seconds": {"start": 2.0, "first_step": 0.1, "data_wait": 3.0, "train": 60.0, "checkpoint": 4.0, "job": 90.0},
        "worker_seconds": 180.0,
        "test_evaluations": 1,
        "groups": [{"attempt": 1, "workers": 2, "started": 1.0}],
        "notes": [],
        "parent": None,
        "complete": keys,
        "command": "xdist-train train demo",
        "fingerprint": "f" * 64,
        "split": "patient",
        "identity_digest": "d" * 64,
        "micro_batch_size": 24,
        "code_revision": "0123456789ab",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"host": "node-1", "cpus": 4.0, "gpus": 0.0, "use_gpu": False},
        "attempts": [{"attempt": 1, "workers": 2, "started": 1.0, "ended": 91.0, "status": "finished"}],
        "heartbeat": 91.0,
        "epochs": 4,
        "stopped_early": False,
        "group_starts": 1,
    }
    store.write_json("run.json", {**values, **record})
    return store


def _history() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(4):
        step = 12 * (epoch + 1)
        speeds = {"images_per_s": 300.0, "step_s": 0.05, "data_wait_share": 0.1}
        rows.append({"kind": "step", "epoch": epoch, "step": step, "lr": 1e-3, "loss": 1 / (epoch + 1), **speeds})
        figures = {"val_loss": 1.2 / (epoch + 1), "val_balanced_accuracy": 0.9 - 0.1 * abs(epoch - 2)}
        rows.append(
            {"kind": "epoch", "epoch": epoch, "step": step, "lr": 1e-3, "train_loss": 1 / (epoch + 1), **figures}
            | {"selected": epoch <= 2, "images_per_s": 300.0}
        )
    return rows


def write_cam(run: Store, ids: Sequence[int], classes: Sequence[str] = CLASSES, warning: str | None = None) -> None:
    """What a CAM job leaves of a split, of pictures that are noise: listed in run.json."""
    generator = np.random.default_rng(0)
    folder, entries, keys = "cam/test/classic-layer4", [], []
    for place, image_id in enumerate(ids):
        for kind in ("images", "overlays"):
            picture = generator.integers(0, 255, (96, 144, 3), dtype=np.uint8)
            run.write(f"{folder}/{kind}/{image_id}.jpg", cv2.imencode(".jpg", picture)[1].tobytes())
        entries.append(
            {
                "id": int(image_id),
                "group": ("TP", "FP", "TN", "FN")[place % 4],
                "class": classes[place % len(classes)],
                "order": "confident" if place % 2 else "random",
                "label": classes[0],
                "predicted": classes[place % 2],
                "probability": 0.75,
                "image": f"{folder}/images/{image_id}.jpg",
                "overlay": f"{folder}/overlays/{image_id}.jpg",
            }
        )
    figure = {"value": 0.8, "low": 0.7, "high": 0.9}
    baselines = {name: {**figure, "difference": figure} for name in ("centred_blob", "mean_map")}
    part = {
        "n": 10,
        "n_patients": 5,
        "pointing_game": {**figure, **baselines},
        "energy_inside": figure,
        "iou": {**figure, "threshold": 0.5},
    }
    place_figure = {"share": 0.2, "area": 0.36, "high": False, "n": 10}
    summary = {
        "schema": 1,
        "fingerprint": run.read_json("run.json")["fingerprint"],
        "method": "classic",
        "layer": "layer4",
        "split": "test",
        "n_images": 300,
        "classes": list(classes),
        "localisation": {"pooled": part, "per_class": {classes[0]: part}},
        "faithfulness": {"n": 10, "share_removed": 0.1} | dict.fromkeys(("top", "random_pixels", "random_map"), figure),
        "shortcut": {"border": place_figure, "outside_tissue": place_figure, "warning": warning},
        "gallery": entries,
    }
    run.write_json(f"{folder}/cam.json", summary)
    keys.append(f"{folder}/cam.json")
    record = run.read_json("run.json")
    run.write_json("run.json", {**record, "complete": sorted({*record["complete"], *keys})})
