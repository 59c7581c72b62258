"""What this machine does in a second, seen for a few seconds: training, and a loader's decoding."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from cluster.processes import KEEPS_FREED_MEMORY
from cluster.world import World
from dataloading.dataset import SPLITS, Dataset
from dataloading.loading.augment import View, draw_augmentation, draw_uniforms
from dataloading.loading.batch import Batch
from dataloading.loading.cache import cache_root, open_split
from dataloading.loading.executor import Encoded, ExecutorSpec
from dataloading.loading.opencv import OpenCVExecutor, decode
from dataloading.packing.phantom import PhantomConfig, run_phantom
from dataloading.picture_size import read_size
from xdist_train.config import Config
from xdist_train.models.backbones import build_model
from xdist_train.models.losses import LossFunction
from xdist_train.training.learner import InputView, Learner

__all__ = ["InputRates", "input_rates", "training_rate"]

_SECONDS = 4.0
_PICTURES = 16


def training_rate(config: Config, num_classes: int, micro_batch_size: int) -> float:
    """Images a second that one worker trains here, without loading any: on a GPU where there is one.

    In a process of its own, which has what a worker's has.
    """
    before = {name: os.environ.get(name) for name in KEEPS_FREED_MEMORY}
    os.environ.update(KEEPS_FREED_MEMORY)  # read as a process starts
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_training_rate, config, num_classes, micro_batch_size).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _training_rate(config: Config, num_classes: int, micro_batch_size: int) -> float:
    torch.set_num_threads(config.scale.cpus_per_worker)
    device = torch.device("cuda" if torch.cuda.is_available() and config.scale.use_gpu != "no" else "cpu")
    side, channels = config.loader.image_size, config.model.in_channels
    learner = Learner(
        build_model(config.model, num_classes),
        LossFunction(config.loss, np.ones(num_classes)),
        config.optim,
        config.train,
        view=InputView((0.5,), (0.25,), side, 1, channels),
        device=device,
        world=World(),
    )
    learner.begin_epoch(0)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (micro_batch_size, 1, side, side), dtype=torch.uint8, generator=random)
    rows = torch.arange(micro_batch_size)

    def step(number: int) -> None:
        batch = Batch(images, rows % num_classes, rows, epoch=0, step=number, index=0)
        learner.step(iter([batch]), 1, float(micro_batch_size), 1e-3)
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        return micro_batch_size / _seconds_a_call(step, time.perf_counter)
    return micro_batch_size / (_seconds_a_call(step) / torch.get_num_threads())


@dataclass(frozen=True)
class InputRates:
    """Images a second of one thread here: `load` of a loader in training, `decode` of decoding alone.

    Seen on what, and how many pixels such a picture has.
    """

    load: float
    decode: float
    seen: str
    pixels: float


def input_rates(config: Config, dataset: Dataset | None) -> InputRates:
    """Seen on pictures of a data set on this machine; on phantom scans where it lies elsewhere, or there is none."""
    local = dataset is not None and dataset.store.is_local
    pictures = _pictures(config, dataset) if dataset is not None and local else _phantom_pictures()
    channels = dataset.info.channels if dataset else 1
    sizes = np.array([read_size(picture.data) for picture in pictures], np.int64)
    loader = config.loader
    view = View(image_size=loader.image_size, fit=loader.fit, reduce_tolerance=loader.reduce_tolerance)
    draws = draw_augmentation(config.augment, view, sizes[:, 0], sizes[:, 1], draw_uniforms(0, 0, 0, len(sizes)))
    reductions = [int(reduction) for reduction in draws.reductions]
    decoded = [decode(data, channels, scale, 0) for data, scale in zip(pictures, reductions, strict=True)]
    keeps_pixels = loader.cache == "pixels"
    executor = OpenCVExecutor(
        ExecutorSpec(
            image_size=loader.image_size,
            channels=channels,
            threads=1,
            in_flight=1,
            device=torch.device("cpu"),
            decoded=keeps_pixels,
        )
    )
    try:
        source = [picture.reshape(*picture.shape[:2], channels) for picture in decoded] if keeps_pixels else pictures
        load = len(pictures) / _seconds_a_call(lambda _: executor.submit(source, draws).result())
    finally:
        executor.close()
    pairs = list(zip(pictures, reductions, strict=True))
    alone = len(pairs) / _seconds_a_call(lambda _: [decode(data, channels, scale, 0) for data, scale in pairs])
    seen = "pictures of the data set" if local else "phantom scans"
    return InputRates(load, alone, seen, float(np.mean(sizes[:, 0] * sizes[:, 1])))


def _pictures(config: Config, dataset: Dataset) -> list[Encoded]:
    split = open_split(dataset, config.data.split, SPLITS[0], cache_root(config.loader.cache_dir))
    rows = np.linspace(0, len(split) - 1, min(_PICTURES, len(split))).astype(np.int64)
    return list(split.images(split.records(rows)))


def _phantom_pictures() -> list[Encoded]:
    with tempfile.TemporaryDirectory() as folder:
        run_phantom(Path(folder) / "phantom", PhantomConfig(num_images=_PICTURES), workers=1)
        files = sorted((Path(folder) / "phantom").rglob("*.jpeg"))
        return [np.frombuffer(path.read_bytes(), np.uint8) for path in files]


def _seconds_a_call(work: Callable[[int], object], clock: Callable[[], float] = time.process_time) -> float:
    """Median over a few seconds, after a first call that is not counted; of CPU time what else runs here is no part."""
    numbers: Iterator[int] = count()
    work(next(numbers))
    seconds: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(seconds) < 3 or (time.perf_counter() < until and len(seconds) < 200):
        began = clock()
        work(next(numbers))
        seconds.append(clock() - began)
    return float(np.median(seconds))
