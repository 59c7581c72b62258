"""Ranks for tests: spawned gloo processes, and stand-ins with the real contracts for loader and reporter."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from cluster.world import World
from dataloading.loading.batch import Batch
from dataloading.loading.plan import Plan, Request, StepPlan
from xdist_train.config import (
    CheckpointConfig,
    EarlyStoppingConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from xdist_train.models.backbones import build_model
from xdist_train.models.export import Selection
from xdist_train.models.losses import LossFunction, build_class_weights
from xdist_train.training.learner import InputView, Learner
from xdist_train.training.loop import Job, Saving
from xdist_train.training.messages import Progress
from xdist_train.training.optim import build_schedule

CLASS_COUNTS = (50, 23, 31)
IMAGE_SIZE = 32


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(world, *arguments)` returns on rank 0 of a gloo group of spawned processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, args=(size, folder, function, arguments), nprocs=size)
        return torch.load(Path(folder) / "result", weights_only=False)


def _rank(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    result = function(World(rank, size), *arguments)
    if rank == 0:
        torch.save(result, Path(folder) / "result")
    with contextlib.suppress(RuntimeError):  # another has gone
        dist.barrier()
    os._exit(0)  # gloo's threads at times abort a process that takes its group away


class FakeBatches:
    """Batches as a function of (row, position): images whose class can be learned, without any file."""

    def __init__(self, plan: Plan, wait_s: float = 0.0, seen: list[Any] | None = None) -> None:
        self.plan, self.wait_s, self.seen = plan, wait_s, seen

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            if self.wait_s:
                time.sleep(self.wait_s)
            stop = request.start + len(request.rows)
            labels = self.plan.classes(request.epoch, request.start, stop)
            images = np.stack([_image(row, label) for row, label in zip(request.rows, labels, strict=True)])
            if self.seen is not None:
                self.seen.append((request.epoch, request.step, request.index, request.rows.tolist()))
            yield Batch(
                torch.from_numpy(images),
                torch.from_numpy(labels),
                torch.from_numpy(request.rows),
                request.epoch,
                request.step,
                request.index,
            )


def _image(row: int, label: int) -> np.ndarray:
    image = np.random.default_rng([int(row)]).integers(0, 200, (1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    image[0, : 8 * (int(label) + 1)] += 40
    return image


def make_job(
    world: World,
    *,
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    micro_batch_size: int,
    loss: LossConfig | None = None,
    schedule: ScheduleConfig | None = None,
    checkpoint: CheckpointConfig | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    loader: Any = None,
) -> Job:
    """A small job on fake batches; `evaluate` gives val figures (a fixed figure by default)."""
    torch.manual_seed(train.seed)
    section = loss or LossConfig()
    plan = Plan(CLASS_COUNTS, 0.5, train.seed)
    steps = StepPlan(plan.num_draws, train.step_size, micro_batch_size)
    learner = Learner(
        build_model(model, len(CLASS_COUNTS)),
        LossFunction(section, build_class_weights(section, CLASS_COUNTS)),
        optim,
        train,
        view=InputView((0.4,), (0.25,), IMAGE_SIZE, channels=1),
        device=torch.device("cpu"),
        world=world,
        unfreeze_epoch=model.unfreeze_epoch,
    )
    return Job(
        learner=learner,
        plan=plan,
        steps=steps,
        world=world,
        loader=loader or FakeBatches(plan),
        evaluate=evaluate or (lambda: {"loss": 1.0, "balanced_accuracy": 0.5}),
        schedule=build_schedule(schedule or ScheduleConfig(name="constant"), steps.steps_per_epoch, train.epochs),
        train=train,
        early_stopping=EarlyStoppingConfig(),
        checkpoint=checkpoint or CheckpointConfig(),
    )


class FolderReporter:
    """Keeps checkpoints in a folder; can ask the run to stop after so many control points."""

    def __init__(self, folder: Path | None = None, stop_after: int = -1) -> None:
        self.folder, self.stop_after = folder, stop_after
        self.shown: list[Progress] = []
        self.selections: list[Selection] = []
        self.history: list[dict[str, Any]] = []
        self.saved: list[str] = []

    def progress(self, progress: Progress) -> None:
        self.shown.append(progress)

    def stop_asked(self) -> bool:
        self.stop_after -= 1
        return self.stop_after == -1

    def make_room(self) -> None:
        """A folder always has some."""

    def save(self, saving: Saving) -> None:
        self.saved.append(saving.name)
        if saving.snapshot is None:
            return
        if self.folder is not None:
            (self.folder / saving.name).mkdir()
            saving.snapshot.write(self.folder / saving.name)
        saving.snapshot.release()
        if saving.selection is not None:
            self.selections.append(saving.selection)
        if saving.history is not None:
            self.history = saving.history
