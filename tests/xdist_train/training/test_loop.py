"""The loop's promises, on fake batches: selection, stopping, failures, and figures that are true."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.world import World
from tests.xdist_train.training.ranks import FakeBatches, FolderReporter, make_job, run_ranks
from xdist_train.config import (
    CheckpointConfig,
    EarlyStoppingConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from xdist_train.training.checkpoint import load_checkpoint
from xdist_train.training.loop import Job, run_loop
from xdist_train.training.state import Outcome, TrainState

_MODEL = ModelConfig(backbone="small_cnn")
_OPTIM = OptimConfig(name="sgd", lr=0.01)
_TRAIN = TrainConfig(epochs=2, batch_size=26, log_every_steps=2)


def _job(world: World | None = None, **changes: Any) -> Job:
    arguments = {"model": _MODEL, "optim": _OPTIM, "train": _TRAIN, "micro_batch_size": 13, **changes}
    return make_job(world or World(), **arguments)


def _run(job: Job, state: TrainState | None = None, **reporter: Any) -> tuple[Outcome, FolderReporter]:
    keeper = FolderReporter(**reporter)
    return run_loop(job, state or TrainState(), keeper), keeper


def test_history_has_a_row_a_log_step_and_an_epoch() -> None:
    """4 steps an epoch, logged every 2, over 2 epochs: 4 step rows and 2 epoch rows, steps counted over the run."""
    _, reporter = _run(_job())
    rows = [(row["kind"], row["epoch"], row["step"]) for row in reporter.history]
    expected = [("step", 0, 2), ("step", 0, 4), ("epoch", 0, 4), ("step", 1, 6), ("step", 1, 8), ("epoch", 1, 8)]
    assert expected == rows


def test_the_recorded_rate_is_the_heads() -> None:
    """Whatever part of it the stages before have; resting ones have none."""
    model = replace(_MODEL, freeze="stages:1")
    _, reporter = _run(_job(model=model, optim=replace(_OPTIM, layer_decay=0.1)))
    assert {0.01} == {row["lr"] for row in reporter.history}


def test_checkpoints_are_named_by_the_next_step() -> None:
    """One every `checkpoint.every_steps` inside an epoch, and one at each epoch's end."""
    _, reporter = _run(_job(checkpoint=CheckpointConfig(every_steps=3)))
    assert reporter.saved == ["e000-s000003-a01", "e001-s000000-a01", "e001-s000003-a01", "e002-s000000-a01"]


def test_the_best_epoch_is_published_once_each_time_it_improves() -> None:
    """val figures 0.5, 0.9, 0.7 publish epochs 0 and 1."""
    figures = iter([0.5, 0.9, 0.7])
    job = _job(train=replace(_TRAIN, epochs=3), evaluate=lambda: {"loss": 1.0, "balanced_accuracy": next(figures)})
    outcome, reporter = _run(job)
    assert [(chosen.epoch, chosen.value) for chosen in reporter.selections] == [(0, 0.5), (1, 0.9)]
    assert outcome.state.selection == reporter.selections[-1]


def test_early_stopping_ends_the_run() -> None:
    """With patience 1 and a figure that never improves, epoch 1 is the last of 5."""
    job = replace(_job(train=replace(_TRAIN, epochs=5)), early_stopping=EarlyStoppingConfig(patience=1))
    outcome, _ = _run(job)
    assert (outcome.status, outcome.state.epoch, outcome.state.stopped_early) == ("finished", 2, True)


def test_a_request_to_stop_leaves_a_checkpoint_of_the_present_position() -> None:
    """Asked at the first control point, the run stops behind a checkpoint of step 1 or 2 and says so."""
    outcome, reporter = _run(_job(), stop_after=0)
    assert outcome.status == "stopped"
    assert [f"e000-s{outcome.state.step:06d}-a01"] == reporter.saved


class _StopAfterEpoch(FolderReporter):
    """Asks to stop once an epoch has been kept."""

    def stop_asked(self) -> bool:
        return bool(self.history)


def test_a_request_that_comes_with_an_epochs_end_needs_no_second_checkpoint() -> None:
    """The epoch's own is the last one saved, and not a step of the next epoch is run."""
    reporter = _StopAfterEpoch()
    outcome = run_loop(_job(), TrainState(), reporter)
    assert (outcome.status, outcome.state.epoch, outcome.state.step) == ("stopped", 1, 0)
    assert reporter.saved[-1] == "e001-s000000-a01"
    assert reporter.saved.count("e001-s000000-a01") == 1


def _broken_at(world: World, step: int, rank: int) -> Outcome:
    """A run whose loss turns to NaN at a step on one rank."""
    job = _job(world, train=replace(_TRAIN, batch_size=26, log_every_steps=4))
    per_sample, seen = job.learner.loss.per_sample, []

    def poisoned(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(seen))
        losses = per_sample(logits, labels)
        return losses * math.nan if len(seen) == step + 1 and world.rank == rank else losses

    job.learner.loss.per_sample = poisoned  # type: ignore[method-assign]
    return _run(job)[0]


def test_a_non_finite_loss_ends_the_run_with_step_and_rank() -> None:
    """NaN at step 2 on rank 1 of 2 is a returned failure that names both; nothing is raised."""
    outcome = run_ranks(2, _broken_at, 2, 1)
    assert outcome.failure is not None
    assert (
        outcome.status,
        outcome.failure.kind,
        outcome.failure.step,
        outcome.failure.rank,
    ) == ("failed", "non_finite_loss", 2, 1)
    assert "step 2" in outcome.failure.message
    assert "rank 1" in outcome.failure.message


def test_a_broken_evaluation_ends_the_run() -> None:
    """A val loss that is not finite is a failure too, and publishes no model."""
    outcome, reporter = _run(_job(evaluate=lambda: {"loss": math.nan}))
    assert (outcome.status, reporter.selections) == ("failed", [])


@pytest.mark.parametrize("wait_s", [0.05, 0.2])
def test_data_wait_and_step_time_are_true(wait_s: float) -> None:
    """A loader that takes a known time a micro batch: the reported wait is that time, and a step contains it."""
    job = _job(train=replace(_TRAIN, epochs=1, log_every_steps=4))
    job = replace(job, loader=FakeBatches(job.plan, wait_s=wait_s))
    outcome, reporter = _run(job)
    (row,) = [row for row in reporter.history if row["kind"] == "step"]
    waited = 4 * 2 * wait_s  # 4 steps of 2 micro batches
    assert row["data_wait_share"] * row["step_s"] * 4 == pytest.approx(outcome.state.seconds["data_wait"], rel=0.01)
    assert waited <= outcome.state.seconds["data_wait"] < waited * 1.2 + 0.5
    assert row["step_s"] >= 2 * wait_s
    assert row["images_per_s"] == pytest.approx(104 / (4 * row["step_s"]), rel=0.01)


def test_progress_counts_what_this_process_trained() -> None:
    """Resumed at (1, 2) of 2 epochs of 4 steps, its Progresses add up to 2 steps; undisturbed to 8."""
    for state, steps in ((TrainState(), 8), (TrainState(epoch=1, step=2), 2)):
        _, reporter = _run(_job(), state)
        assert (steps, 26 * steps) == (
            sum(progress.new_steps for progress in reporter.shown),
            sum(progress.new_images for progress in reporter.shown),
        )


def test_a_resumed_run_draws_the_same_images() -> None:
    """From (1, 2) on, the micro batches are those of the undisturbed run."""
    whole: list[Any] = []
    rest: list[Any] = []
    for seen, state in ((whole, TrainState()), (rest, TrainState(epoch=1, step=2))):
        job = _job()
        _run(replace(job, loader=FakeBatches(job.plan, seen=seen)), state)
    assert [entry for entry in whole if entry[:2] >= (1, 2)] == rest


def test_the_loss_falls() -> None:
    """Images whose class shows are learned: the training loss of the last epoch is below the first's."""
    train = replace(_TRAIN, epochs=4)
    _, reporter = _run(_job(train=train, optim=OptimConfig(name="adamw", lr=3e-3)))
    losses = [row["train_loss"] for row in reporter.history if row["kind"] == "epoch"]
    assert losses[-1] < 0.6 * losses[0]


_SCRIPT = [0.5, 0.7, 0.6, 0.6, 0.6, 0.6]


def _scripted_job(start: int) -> Job:
    """A plateau schedule and patience 3 under val figures that are known for each epoch."""
    figures = iter(_SCRIPT[start:])

    def evaluate() -> dict[str, float]:
        value = next(figures)
        return {"loss": 1 - value, "balanced_accuracy": value}

    job = _job(
        train=replace(_TRAIN, epochs=6),
        schedule=ScheduleConfig(name="plateau", patience=2, gamma=0.5),
        checkpoint=CheckpointConfig(every_steps=2),
        evaluate=evaluate,
    )
    return replace(job, early_stopping=EarlyStoppingConfig(patience=3))


def _plain(state: TrainState) -> dict[str, Any]:
    """A state without what a clock says."""
    clocked = {"time", "images_per_s", "step_s", "data_wait_share"}
    rows = [{name: value for name, value in row.items() if name not in clocked} for row in state.history]
    return {**state.to_json(), "history": rows, "seconds": None}


def test_a_resumed_run_remembers_patience_plateau_history_and_loss(tmp_path: Path) -> None:
    """Resumed in the middle of epoch 3, a run ends in the undisturbed state: rate, rows, stop, selection."""
    whole, _ = _run(_scripted_job(0), folder=tmp_path)
    job = _scripted_job(3)
    state = load_checkpoint(tmp_path / "e003-s000002-a01", job.learner)
    rest, _ = _run(job, state)
    assert _plain(whole.state) == _plain(rest.state)
    assert (5, True, 1) == (
        rest.state.epoch,
        rest.state.stopped_early,
        rest.state.selection and rest.state.selection.epoch,
    )
    rates = [row["lr"] for row in rest.state.history if row["kind"] == "epoch"]
    assert [0.01] * 4 + [0.005] == pytest.approx(rates)


def test_a_run_that_could_select_nothing_fails() -> None:
    """A figure that is NaN in every epoch leaves no model, which is said, not passed over."""
    outcome, _ = _run(_job(evaluate=lambda: {"loss": 1.0, "balanced_accuracy": math.nan}))
    assert outcome.failure is not None
    assert ("failed", "nothing_selected") == (outcome.status, outcome.failure.kind)
