"""Weak scaling: two DDP workers against two processes that train alone, each with the same micro batch.

ResNet-18 at 224 px, 16 images a process, one thread each, by the project's learner without Ray. The same two
processes take turns at all: a step alone, a step of both together, and one whose gradients travel as bfloat16; each
turn begins at a barrier. One batch stays in memory: reading is measured elsewhere. The figure is the throughput of both
over that of two alone, so 1 would be no cost at all of working together.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from cluster.processes import KEEPS_FREED_MEMORY
from cluster.world import World
from dataloading.loading.batch import Batch
from tests.bench.results import Row, measured, median_interval, versions
from xdist_train.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from xdist_train.models.backbones import build_model
from xdist_train.models.losses import LossFunction, build_class_weights
from xdist_train.training.learner import InputView, Learner

__all__ = ["CLASSES", "MICRO_BATCH", "SIZE_PX", "build_learner", "rows"]

COMMAND = "python -m tests.bench scaling"
PAIRS = 14
STEPS = 2
BACKBONE, SIZE_PX, MICRO_BATCH, CLASSES = "resnet18", 224, 16, 4
_ALONE, _TOGETHER, _ROUNDED = "alone", "together", "together, bf16 gradients"

Seconds = dict[str, list[float]]


def rows() -> Iterable[Row]:
    """Throughput of two workers over that of two processes alone, with an interval, and what a step takes."""
    by_rank = _measure()
    about = f"{BACKBONE}, {SIZE_PX} px, {MICRO_BATCH} images each"
    details = {"versions": versions("torch"), "command": COMMAND}
    rates = {name: _rates(by_rank, name) for name in (_ALONE, _TOGETHER, _ROUNDED)}
    for name, goal in ((_TOGETHER, "median >= 0.93"), (_ROUNDED, "")):
        ratios = [one / other for one, other in zip(rates[name], rates[_ALONE], strict=True)]
        low, high = median_interval(ratios)
        what = f"2 workers {name}: {about} (95 % interval of the median {low:.3f} – {high:.3f})"
        row = measured(what, ratios, unit="of the throughput", goal=goal, **details)
        yield Row(**{**vars(row), "against": "2 processes alone", "ratio": row.median})
    for name, values in rates.items():
        yield measured(f"2 processes {name}: {about}", values, unit="images/s", **details)


def _rates(by_rank: list[Seconds], name: str) -> list[float]:
    """Images a second of both processes in each turn."""
    turns = zip(*(seconds[name] for seconds in by_rank), strict=True)
    return [sum(MICRO_BATCH * STEPS / seconds for seconds in turn) for turn in turns]


def _measure() -> list[Seconds]:
    """Seconds of each contender's turns, on each rank."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, KEEPS_FREED_MEMORY):
        multiprocessing.spawn(_rank, args=(folder, PAIRS), nprocs=2)
        return [torch.load(Path(folder) / str(rank)) for rank in range(2)]


def _rank(rank: int, folder: str, pairs: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    train, world = TrainConfig(batch_size=2 * MICRO_BATCH), World(rank, 2)
    learners = {
        _ALONE: build_learner(train, World()),
        _TOGETHER: build_learner(train, world),
        _ROUNDED: build_learner(replace(train, gradient_traffic="bf16"), world),
    }
    names, found = list(learners), Seconds()
    for turn in range(pairs + 1):
        for name in names[turn % 3 :] + names[: turn % 3]:
            dist.barrier()
            found.setdefault(name, []).append(_step_seconds(learners[name], turn))
    torch.save({name: values[1:] for name, values in found.items()}, Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()


def build_learner(train: TrainConfig, world: World) -> Learner:
    """What a rank trains."""
    torch.manual_seed(0)
    counts, section = (100,) * CLASSES, LossConfig()
    return Learner(
        build_model(ModelConfig(backbone=BACKBONE), CLASSES),
        LossFunction(section, build_class_weights(section, counts)),
        OptimConfig(),
        train,
        view=InputView((0.25,), (0.2,), SIZE_PX, channels=1),
        device=torch.device("cpu"),
        world=world,
    )


def _step_seconds(learner: Learner, turn: int) -> float:
    """Of a turn's steps."""
    images = torch.full((MICRO_BATCH, 1, SIZE_PX, SIZE_PX), 64, dtype=torch.uint8).random_(0, 256)
    labels = torch.arange(MICRO_BATCH) % CLASSES
    batches = itertools.repeat(Batch(images, labels, torch.arange(MICRO_BATCH), 0, turn, learner.world.rank))
    weight_sum = float(MICRO_BATCH * learner.world.size)
    started = time.perf_counter()
    for _ in range(STEPS):
        learner.step(batches, 1, weight_sum, 1.0)
    return time.perf_counter() - started
