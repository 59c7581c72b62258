"""A published model's answers for image files, seen exactly as evaluation saw its images.

Every file is read and answered before anything is returned, so that a bad one leaves nothing half said.
Knows no data set and no run beyond its model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.terminal import printable
from dataloading.config import PackConfig
from dataloading.loading.augment import View, plain_view
from dataloading.loading.batch import normalise
from dataloading.loading.executor import ExecutorSpec, UndecodableError
from dataloading.loading.opencv import OpenCVExecutor
from dataloading.packing.images import read_file, read_image
from dataloading.packing.rejection import RejectedError
from xdist_train.evidence.inference import softmax
from xdist_train.models.export import ModelDescription, load_model

__all__ = ["Prediction", "predict_images"]

_BATCH_SIZE = 32


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
    classifier = _Classifier(model.to(device), description, torch.device(device))
    try:
        chunks = [paths[start : start + _BATCH_SIZE] for start in range(0, len(paths), _BATCH_SIZE)]
        rows = np.concatenate([classifier.probabilities(chunk) for chunk in chunks])
    finally:
        classifier.close()
    return [_prediction(path, row, description.classes) for path, row in zip(paths, rows, strict=True)]


class _Picture(NamedTuple):
    """Bytes to decode, and the size in pixels of the upright picture."""

    encoded: NDArray[np.uint8]
    width: int
    height: int


class _Classifier:
    """Model, executor and preprocessing, put together once."""

    def __init__(self, model: nn.Module, description: ModelDescription, device: torch.device) -> None:
        preprocessing = description.preprocessing
        self._model, self._description, self._device = model, description, device
        self._dtype = next(model.parameters()).dtype
        self._view = View(
            image_size=preprocessing.image_size,
            fit=cast(Literal["stretch", "crop"], preprocessing.fit),
            reduce_tolerance=preprocessing.reduce_tolerance,
        )
        self._executor = OpenCVExecutor(
            ExecutorSpec(
                image_size=preprocessing.image_size,
                channels=preprocessing.channels,
                threads=os.cpu_count() or 1,
                in_flight=1,
                device=torch.device("cpu"),
            )
        )

    def close(self) -> None:
        """Stop the decoding threads."""
        self._executor.close()

    @torch.inference_mode()
    def probabilities(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Probabilities of a few image files, [n, K]."""
        pictures = [_read_picture(path) for path in paths]
        pixels = self._decode(paths, pictures).to(self._device)
        facts, channels = self._description.preprocessing, self._description.model.in_channels
        images = normalise(pixels, facts.mean, facts.std, channels, self._dtype)
        return softmax(self._model(images.contiguous()))

    def _decode(self, paths: Sequence[str | Path], pictures: Sequence[_Picture]) -> Tensor:
        widths = np.array([picture.width for picture in pictures])
        heights = np.array([picture.height for picture in pictures])
        view = plain_view(self._view, widths, heights)
        try:
            return self._executor.submit([picture.encoded for picture in pictures], view).result()
        except UndecodableError as error:
            raise _not_an_image(paths[error.position], error.reason) from None


def _read_picture(path: str | Path) -> _Picture:
    """The file, verified and cleaned as `pack` does it: the model sees what it would have seen packed."""
    try:
        image = read_image(read_file(Path(path)), PackConfig().max_pixels)
    except OSError as error:
        raise _not_an_image(path, error.strerror or str(error)) from None
    except RejectedError as error:
        raise _not_an_image(path, str(error)) from None
    height, width = image.pixels.shape[:2]
    return _Picture(np.frombuffer(image.data, np.uint8), width, height)


def _not_an_image(path: str | Path, reason: str) -> InputError:
    return InputError(
        f"predict: {printable(str(path))!r} is not a readable image ({reason}). "
        "Give whole image files, such as JPEG or PNG. Nothing was predicted."
    )


def _prediction(path: str | Path, row: NDArray[np.float64], classes: Sequence[str]) -> Prediction:
    probabilities = dict(zip(classes, row.tolist(), strict=True))
    return Prediction(str(path), classes[int(row.argmax())], probabilities)
