"""One step is one step: on any number of workers, and after any resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.world import World
from dataloading.loading.plan import training_requests
from tests.xdist_train.training.ranks import FolderReporter, make_job, run_ranks
from xdist_train.config import CheckpointConfig, LossConfig, ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from xdist_train.training.checkpoint import load_checkpoint
from xdist_train.training.loop import run_loop
from xdist_train.training.state import TrainState

_BATCH_NORM = ModelConfig(backbone="small_cnn", dropout=0.1)
_GROUP_NORM = ModelConfig(backbone="small_cnn", norm="group")
_SGD = OptimConfig(name="sgd", lr=0.05)
_ADAM = OptimConfig(name="adam", lr=1e-3)
_TRAIN = TrainConfig(epochs=20, batch_size=20, precision="float64", log_every_steps=1000, ema_decay=0.9)

# Name: model, optimiser, loss, mixup. Every one with micro batches of 5 in steps of 20.
_CASES: dict[str, tuple[ModelConfig, OptimConfig, LossConfig, float]] = {
    "group norm, sgd": (_GROUP_NORM, _SGD, LossConfig(), 0),
    "batch norm, adam": (_BATCH_NORM, _ADAM, LossConfig(), 0),
    "batch norm, sgd, class weights": (_BATCH_NORM, _SGD, LossConfig(class_weights="inverse"), 0),
    "group norm, adam, smoothed, mixed": (_GROUP_NORM, _ADAM, LossConfig(label_smoothing=0.1), 0.4),
}


def _weights_after_20_steps(world: World, batch_size: int) -> dict[str, dict[str, torch.Tensor]]:
    """Parameters, buffers and averages of each case after 20 steps of 20 images, `batch_size` of them a pass."""
    train = replace(_TRAIN, batch_size=batch_size, accumulation_steps=20 // batch_size)
    weights = {}
    for name, (model, optim, loss, mixup) in _CASES.items():
        mixed = replace(train, mixup=mixup)
        job = make_job(world, model=model, optim=optim, train=mixed, loss=loss, micro_batch_size=5)
        weights[name] = _run_20_steps(job)
    return weights


def _run_20_steps(job: Any) -> dict[str, torch.Tensor]:
    steps, done = job.steps, 0
    for epoch in range(20):
        batches = job.loader.load(training_requests(job.plan, steps, job.world, epoch))
        for step in range(steps.steps_per_epoch):
            start, stop = steps.span(step)
            count = len(steps.micro_batches(step, job.world))
            total = job.learner.loss.weight_sum(job.plan.classes(epoch, start, stop))
            job.learner.step(batches, count, total, 1.0)
            done += 1
            job.learner.average.update(done)
            if done == 20:
                return _tensors(job)
    raise AssertionError("fewer than 20 steps")


def _tensors(job: Any) -> dict[str, torch.Tensor]:
    """Of the model that learns and of its average."""
    models = {"model": job.learner.model, "average": job.learner.average.model}
    return {
        f"{kind}/{name}": value.clone() for kind, model in models.items() for name, value in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def one_worker() -> dict[str, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    return _weights_after_20_steps(World(), 20)


def _largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Relative to the largest value of each tensor."""
    return max(float((left[name] - right[name]).abs().max() / left[name].abs().max()) for name in left)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 5), (2, 10), (4, 20), (3, 20)])
def test_the_model_does_not_depend_on_workers_or_accumulation(
    size: int, batch_size: int, one_worker: dict[str, dict[str, torch.Tensor]]
) -> None:
    """After 20 steps in float64 weights, BatchNorm's figures and the averages of both equal those of one worker within
    1e-9 relative.

    An epoch of 104 images ends in a step of 4 images, one micro batch: with more than one worker there
    are ranks without work in it.
    """
    if size == 1:
        other = _weights_after_20_steps(World(), batch_size)
    else:
        other = run_ranks(size, _weights_after_20_steps, batch_size)
    differences = {name: _largest_difference(one_worker[name], other[name]) for name in _CASES}
    assert {name: difference < 1e-9 for name, difference in differences.items()} == dict.fromkeys(_CASES, True)


_RUN = TrainConfig(epochs=2, batch_size=24, log_every_steps=2, clip_norm=1.0, ema_decay=0.9, mixup=0.2)


def _train_whole_and_resumed(world: World, folder: Path) -> dict[str, Any]:
    """Final tensors of a run, of its repetition, of one resumed at (1, 2), and of one stopped and resumed."""
    return {
        "whole": _train(world, folder / "a"),
        "again": _train(world, folder / "b"),
        "resumed": _train(world, folder / "c", start=folder / "a" / "e001-s000002-a01"),
        "stopped": _train_in_two(world, folder / "d"),
    }


def _train(world: World, folder: Path, start: Path | None = None, stop_after: int = -1) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    job = make_job(
        world,
        model=_BATCH_NORM,
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.01),
        train=_RUN,
        micro_batch_size=6,
        schedule=ScheduleConfig(name="cosine"),
        checkpoint=CheckpointConfig(every_steps=2),
    )
    state = load_checkpoint(start, job.learner) if start else TrainState()
    outcome = run_loop(job, state, FolderReporter(folder if world.is_first else None, stop_after))
    assert outcome.status == ("stopped" if stop_after >= 0 else "finished")
    return _tensors(job)


def _train_in_two(world: World, folder: Path) -> dict[str, torch.Tensor]:
    _train(world, folder, stop_after=1)
    if world.size > 1:
        torch.distributed.barrier()
    newest = sorted(folder.iterdir())[-1]
    if world.size > 1:
        torch.distributed.barrier()
    rest = folder.with_name("e")
    return _train(world, rest, start=newest)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_resumed_run_ends_in_equal_bits(size: int, tmp_path: Path) -> None:
    """Repeated, resumed in the middle of an epoch, or stopped and resumed, a float32 run ends in the same weights
    and the same average of them."""
    torch.set_num_threads(1)
    function = _train_whole_and_resumed
    runs = function(World(), tmp_path) if size == 1 else run_ranks(size, function, tmp_path)
    whole = runs["whole"]
    for other in ("again", "resumed", "stopped"):
        equal = {name: torch.equal(whole[name], runs[other][name]) for name in whole}
        assert equal == dict.fromkeys(whole, True), other


def _gradients_by_traffic(world: World) -> dict[str, list[torch.Tensor]]:
    """Of the first step, on each rank."""
    found = {}
    for traffic in ("full", "bf16"):
        train = replace(_TRAIN, batch_size=20, precision="float32", gradient_traffic=traffic)
        job = make_job(world, model=_GROUP_NORM, optim=_SGD, train=train, micro_batch_size=5)
        start, stop = job.steps.span(0)
        total = job.learner.loss.weight_sum(job.plan.classes(0, start, stop))
        batches = job.loader.load(training_requests(job.plan, job.steps, world, 0))
        job.learner.step(batches, len(job.steps.micro_batches(0, world)), total, 1.0)
        flat = torch.cat([parameter.grad.flatten() for parameter in job.learner.model.parameters()])
        found[traffic] = [torch.empty_like(flat) for _ in range(world.size)]
        torch.distributed.all_gather(found[traffic], flat)
    return found


def test_gradients_may_travel_rounded() -> None:
    """Ranks agree in every bit, on what is off by bfloat16's 8 bits twice at most: each one's part, and the sum."""
    found = run_ranks(2, _gradients_by_traffic)
    assert torch.equal(*found["full"])
    assert torch.equal(*found["bf16"])
    full, rounded = found["full"][0], found["bf16"][0]
    assert 0 < float((full - rounded).abs().max() / full.abs().max()) < 2**-6
