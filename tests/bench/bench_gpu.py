"""On a GPU: DALI's decoding by its settings, pixels that live there, and ResNet-50 in bf16 fed by each of them.

Real OCT files, 224 px, batches of 256, one process. Decoding is measured alone, to a normalised float32 batch on the
device. Training takes turns: the same learner on a batch that stays in the GPU's memory (its limit), fed by DALI from
JPEGs, by pixels in the GPU's memory, and by torchvision's DataLoader. `tests/gpu` runs first: a wrong picture is not
measured. Without a GPU there is nothing here.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cluster.world import World
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.loading.batch import Batch, normalise
from dataloading.loading.cache import Split, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import Request
from tests.bench.results import BenchSkippedError, Row, compare, hardware, measured, versions
from tests.dataloading.loading.packed import find_real_oct_files, write_dataset
from xdist_train.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.losses import LossFunction, build_class_weights
from xdist_train.models.torchvision_shim import declare_missing_operators
from xdist_train.training.learner import InputView, Learner

__all__ = ["rows"]

COMMAND = "python -m tests.bench gpu"
ROUNDS = 5
BATCH_SIZE, SIZE, CLASSES = 256, 224, 4
STEPS = 30
MEAN, STD = (0.19,), (0.2,)
THREADS = (4, 8, 16)
HARDWARE_SHARES = (0.0, 0.12, 0.65, 1.0)
_IMAGES = 4096


def rows() -> Iterable[Row]:
    """The bench's rows; needs a CUDA device and the real OCT files."""
    files = find_real_oct_files()
    if not torch.cuda.is_available():
        raise BenchSkippedError("no CUDA device here, so nothing is claimed")
    if not files:
        raise BenchSkippedError("no real OCT images; set XDIST_REAL_DATA")
    checks = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/gpu"], check=False)
    if checks.returncode:
        raise BenchSkippedError("tests/gpu fail here: what is wrong is not measured")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [files[n % len(files)].read_bytes() for n in range(_IMAGES)]
        labels = sorted(n % CLASSES for n in range(_IMAGES))
        dataset = write_dataset(folder / "dataset", images, labels, rows_per_shard=1000)
        split = open_split(dataset, "patient", "train", folder / "cache")
        config = LoaderConfig(cache="device")
        resident = open_split(dataset, "patient", "train", folder / "cache", pixel_side=config.pixel_side)
        yield from _loading_rows(split, resident)
        yield from _training_rows(split, resident, files)


def _details(unit: str) -> dict[str, str]:
    return {
        "unit": unit,
        "versions": versions("torch", "torchvision", "nvidia-dali-cuda130"),
        "hardware": f"{torch.cuda.get_device_name()}; {hardware()}",
        "command": COMMAND,
    }


def _loading_rows(split: Split, resident: Split) -> Iterator[Row]:
    """Images a second, alone on the device."""
    floor = "19,000 (DALI's own floor for an RN50 pipeline on one Hopper)"
    for threads, share in itertools.product(THREADS, HARDWARE_SHARES):
        with _dali(split, threads, share) as loader:
            rates = [_loading_rate(loader, split) for _ in range(ROUNDS + 1)][1:]
        what = f"dali from JPEGs: {threads} threads, {share:.0%} to the hardware decoder, batches of {BATCH_SIZE}"
        yield measured(what, rates, goal=floor if threads == max(THREADS) else "", **_details("images/s"))
    with _loader(resident, LoaderConfig(cache="device")) as loader:
        rates = [_loading_rate(loader, resident) for _ in range(ROUNDS + 1)][1:]
    yield measured(f"pixels in the GPU's memory, warped there, batches of {BATCH_SIZE}", rates, **_details("images/s"))


def _dali(split: Split, threads: int, share: float) -> Loader:
    from nvidia.dali import fn

    decode = partial(fn.decoders.image, hw_decoder_load=share)
    with mock.patch.object(fn.decoders, "image", decode):
        loader = _loader(split, LoaderConfig(backend="dali"), threads)
        next(iter(loader.load([_request(split, 0)])))  # the graph is built with the first batch
    return loader


def _loader(split: Split, config: LoaderConfig, threads: int = 16) -> Loader:
    device = torch.device("cuda", torch.cuda.current_device())
    augment = AugmentConfig()
    return Loader(split, split.dataset.info, config, augment=augment, seed=0, device=device, threads=threads)


def _request(split: Split, number: int) -> Request:
    first = number * BATCH_SIZE
    return Request(0, number, 0, first, np.arange(first, first + BATCH_SIZE) % split.num_images)


def _loading_rate(loader: Loader, split: Split) -> float:
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    for batch in loader.load(_request(split, number) for number in range(STEPS)):
        normalise(batch.images.to("cuda", non_blocking=True), MEAN, STD)
    torch.cuda.synchronize()
    return STEPS * BATCH_SIZE / (time.perf_counter() - start_s)


def _training_rows(split: Split, resident: Split, files: list[Path]) -> Iterator[Row]:
    """The same learner in turns; ratios are to its own rate on a batch that is there."""
    learner = _learner()
    with ExitStack() as stack:
        dali = stack.enter_context(_loader(split, LoaderConfig(backend="dali")))
        pixels = stack.enter_context(_loader(resident, LoaderConfig(cache="device")))
        there = next(iter(dali.load([_request(split, 0)])))
        feeds: dict[str, Callable[[], Iterator[Batch]]] = {
            "a batch that stays in memory": lambda: itertools.repeat(there),
            "dali from JPEGs": lambda: dali.load(_request(split, number) for number in range(STEPS)),
            "pixels in the GPU's memory": lambda: pixels.load(_request(resident, n) for n in range(STEPS)),
            "torchvision's DataLoader, 16 processes": lambda: _torchvision(files),
        }
        rates: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(ROUNDS + 1):
            for name, feed in feeds.items():
                rates[name].append(_training_rate(learner, feed()))
    limit, *others = ((name, values[1:]) for name, values in rates.items())
    about = "ResNet-50, bf16, 224 px, batches of 256"
    yield measured(f"{about}: {limit[0]}", limit[1], **_details("images/s"))
    goals = {"dali from JPEGs": "ratio >= 0.95", "pixels in the GPU's memory": "ratio >= 0.98"}
    for name, values in others:
        goal = goals.get(name, "")
        yield compare(f"{about}: {name}", values, limit[0], limit[1], goal=goal, **_details("images/s"))


def _learner() -> Learner:
    section = LossConfig()
    return Learner(
        build_model(ModelConfig(backbone="resnet50"), CLASSES),
        LossFunction(section, build_class_weights(section, (100,) * CLASSES)),
        OptimConfig(),
        TrainConfig(batch_size=BATCH_SIZE, precision="bf16"),
        view=InputView(MEAN, STD, SIZE, channels=1),
        device=torch.device("cuda", torch.cuda.current_device()),
        world=World(),
    )


def _training_rate(learner: Learner, batches: Iterator[Batch]) -> float:
    """From the third batch on: a feed's start is not a step's cost."""
    for _ in range(2):
        learner.step(batches, 1, float(BATCH_SIZE), 1.0)
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    for _ in range(STEPS - 2):
        learner.step(batches, 1, float(BATCH_SIZE), 1.0)
    torch.cuda.synchronize()
    return (STEPS - 2) * BATCH_SIZE / (time.perf_counter() - start_s)


class _Pictures(Dataset[torch.Tensor]):
    """The files through torchvision's transforms, to uint8."""

    def __init__(self, files: list[Path]) -> None:
        declare_missing_operators()
        from torchvision import transforms

        self._files = files
        self._transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, scale=(0.8, 1.0)),
                transforms.RandomRotation(15),
                transforms.ColorJitter(brightness=0.2, contrast=0.2),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return STEPS * BATCH_SIZE

    def __getitem__(self, number: int) -> torch.Tensor:
        from PIL import Image

        picture: torch.Tensor = self._transform(Image.open(self._files[number % len(self._files)]).convert("L"))
        return picture


def _torchvision(files: list[Path]) -> Iterator[Batch]:
    workers = min(16, os.cpu_count() or 1)
    loader = DataLoader(_Pictures(files), BATCH_SIZE, num_workers=workers, pin_memory=True)
    rows = torch.arange(BATCH_SIZE)
    for number, images in enumerate(loader):
        yield Batch(images, rows % CLASSES, rows, 0, number, 0)
