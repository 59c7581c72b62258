"""A published model's answers for image files, seen exactly as evaluation saw its images.

Every file is read and answered before anything is returned, so that a bad one leaves nothing half said.
Knows no data set and no run beyond its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.terminal import printable
from dataloading.loading.executor import UndecodableError
from dataloading.packing.images import read_file
from dataloading.packing.rejection import RejectedError
from xdist_train.evidence.classifier import BATCH_SIZE, Classifier, Picture, read_picture
from xdist_train.models.export import load_model

__all__ = ["Prediction", "predict_images"]


@dataclass(frozen=True)
class Prediction:
    """One image's answer: its path as given, the likeliest class, every class's probability."""

    source: str
    predicted: str
    probabilities: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values: `source`, `predicted`, `probabilities` by class."""
        return {"source": self.source, "predicted": self.predicted, "probabilities": self.probabilities}

    def text(self, top_k: int) -> str:
        """One line for a terminal: the path and the likeliest classes with their probabilities."""
        ranked = sorted(self.probabilities.items(), key=lambda entry: -entry[1])[:top_k]
        return printable("  ".join([self.source, *(f"{name} {value:.4f}" for name, value in ranked)]))


def predict_images(model_uri: str, paths: Sequence[str | Path], device: torch.device | str = "cpu") -> list[Prediction]:
    """Classify image files.

    Args:
        model_uri: a run folder or a bare `model` folder.
        paths: image files: JPEG, PNG and whatever else `pack` takes.
        device: where the model runs; pictures are decoded on the CPU.

    Raises:
        InputError: no model there, or a file that is missing or not a whole image; it is named.
    """
    model, description = load_model(model_uri)
    classifier = Classifier(model.to(device), description, torch.device(device))
    try:
        chunks = [paths[start : start + BATCH_SIZE] for start in range(0, len(paths), BATCH_SIZE)]
        rows = np.concatenate([_answer(classifier, chunk) for chunk in chunks])
    finally:
        classifier.close()
    return [_prediction(path, row, description.classes) for path, row in zip(paths, rows, strict=True)]


def _answer(classifier: Classifier, paths: Sequence[str | Path]) -> NDArray[np.float64]:
    try:
        return classifier.probabilities([_read(path) for path in paths])
    except UndecodableError as error:
        raise _not_an_image(paths[error.position], error.reason) from None


def _read(path: str | Path) -> Picture:
    try:
        return read_picture(read_file(Path(path)))
    except OSError as error:
        raise _not_an_image(path, error.strerror or str(error)) from None
    except RejectedError as error:
        raise _not_an_image(path, str(error)) from None


def _not_an_image(path: str | Path, reason: str) -> InputError:
    return InputError(
        f"predict: {printable(str(path))!r} is not a readable image ({reason}). "
        "Give whole image files, such as JPEG or PNG. Nothing was predicted."
    )


def _prediction(path: str | Path, row: NDArray[np.float64], classes: Sequence[str]) -> Prediction:
    probabilities = dict(zip(classes, row.tolist(), strict=True))
    return Prediction(str(path), classes[int(row.argmax())], probabilities)
