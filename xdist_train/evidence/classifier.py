"""A published model's probabilities for the bytes of image files, seen exactly as evaluation saw its images.

Knows neither where the bytes came from nor what is done with the answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dataloading.config import PackConfig
from dataloading.loading.augment import View, plain_view
from dataloading.loading.batch import normalise
from dataloading.loading.executor import ExecutorSpec
from dataloading.loading.opencv import OpenCVExecutor
from dataloading.packing.images import read_image
from xdist_train.evidence.inference import softmax
from xdist_train.models.export import ModelDescription

__all__ = ["BATCH_SIZE", "Classifier", "Picture", "read_picture"]

BATCH_SIZE = 32
"""Pictures of one call that use memory and threads well."""


class Picture(NamedTuple):
    """Bytes to decode, and the size in pixels of the upright picture."""

    encoded: NDArray[np.uint8]
    width: int
    height: int


def read_picture(data: bytes) -> Picture:
    """A file's bytes, verified and cleaned as `pack` does it: the model sees what it would have seen packed.

    Raises:
        RejectedError: they are no picture that can be read.
    """
    image = read_image(data, PackConfig().max_pixels)
    height, width = image.pixels.shape[:2]
    return Picture(np.frombuffer(image.data, np.uint8), width, height)


class Classifier:
    """Model, executor and preprocessing, put together once."""

    def __init__(self, model: nn.Module, description: ModelDescription, device: torch.device) -> None:
        self._model, self._description, self._device = model, description, device
        preprocessing = description.preprocessing
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
    def probabilities(self, pictures: Sequence[Picture]) -> NDArray[np.float64]:
        """Probabilities of a few pictures, [n, K].

        Raises:
            UndecodableError: one of them cannot be decoded; its position says which.
        """
        widths = np.array([picture.width for picture in pictures])
        heights = np.array([picture.height for picture in pictures])
        view = plain_view(self._view, widths, heights)
        pixels = self._executor.submit([picture.encoded for picture in pictures], view).result().to(self._device)
        facts, channels = self._description.preprocessing, self._description.model.in_channels
        images = normalise(pixels, facts.mean, facts.std, channels, self._dtype, torch.contiguous_format)
        return softmax(self._model(images))
