"""A published model's answer for image files, seen exactly as evaluation saw its images.

Every file is read and answered before anything is returned, so that a bad one leaves nothing half said.
Knows no data set and no run beyond its model.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.terminal import printable
from dataloading.loading.augment import View, plain_view
from dataloading.loading.batch import normalise
from dataloading.loading.executor import ExecutorSpec, UndecodableError
from dataloading.loading.opencv import OpenCVExecutor
from xdist_train.evidence.inference import softmax
from xdist_train.models.backbones import INPUT_CHANNELS
from xdist_train.models.export import Preprocessing, load_model

__all__ = ["Prediction", "predict_images"]

_BATCH_SIZE = 32
