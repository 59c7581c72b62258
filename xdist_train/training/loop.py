"""The training loop: epochs of steps, evaluation, selection, checkpoints. It knows no Ray and no disk.

It takes a learner, a loader, an evaluation and a reporter, all replaceable, and returns an outcome.
What every rank must do alike (control points, checkpoints, evaluation) is decided from values that all
ranks hold, so ranks never wait for one that took another branch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster.world import World
from dataloading.loading.batch import Batch
from dataloading.loading.plan import Plan, Request, StepPlan, training_requests
from xdist_train.config import CheckpointConfig, EarlyStoppingConfig, TrainConfig
from xdist_train.models.export import Selection
from xdist_train.training.checkpoint import Position, checkpoint_name, snapshot_checkpoint
from xdist_train.training.collectives import gather_values
from xdist_train.training.early_stopping import EarlyStopping
from xdist_train.training.learner import Learner
from xdist_train.training.messages import Failure, Progress
from xdist_train.training.optim import Schedule
from xdist_train.training.state import Outcome, TrainState

__all__ = ["Job", "MicroBatches", "Reporter", "run_loop"]

logger = logging.getLogger(__name__)

_CONTROL_S = 1.0  # aim: ranks agree about stopping and bad numbers this often


class MicroBatches(Protocol):
    """Where batches come from: `Loader`, or any fake."""

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Batches in the order of the requests."""
        ...


class Reporter(Protocol):
    """The loop's only way out. `save` is called by all ranks alike, the others by rank 0."""

    def progress(self, progress: Progress) -> None:
        """Show where the run is."""
        ...

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        ...

    def save(self, name: str, write: Callable[[Path], None] | None, metrics: dict[str, Any]) -> None:
        """Keep a checkpoint; `write` fills a folder, and is None on all ranks but 0."""
        ...

    def publish_model(self, selection: Selection) -> None:
        """The present weights are the best so far."""
        ...

    def publish_history(self, history: list[dict[str, Any]]) -> None:
        """The history grew by an epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the loop works with."""

    learner: Learner
    plan: Plan
    steps: StepPlan
    world: World
    loader: MicroBatches
    evaluate: Callable[[], dict[str, float]]
    """Figures of the present weights on val, equal on all ranks; collective."""
    schedule: Schedule
    train: TrainConfig
    early_stopping: EarlyStoppingConfig
    checkpoint: CheckpointConfig
    attempt: int = 1


@dataclass
class _Window:
    """Sums between two rows of kind `step`, agreed at control points."""

    steps: int = 0
    images: int = 0
    loss_sum: float = 0.0
    wait_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def row(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "loss": self.loss_sum / max(self.steps, 1),
            "images_per_s": self.images / seconds,
            "step_s": seconds / max(self.steps, 1),
            "data_wait_share": min(self.wait_s / seconds, 1.0),
        }


class _TimedBatches:
    """An iterator that counts the seconds in which the loop waited for it."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.wait_s = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.wait_s += time.perf_counter() - started


class _Run:
    """One call of `run_loop`: the pieces that steps and epochs share."""

    def __init__(self, job: Job, state: TrainState, reporter: Reporter) -> None:
        self.job, self.state, self.reporter = job, state, reporter
        self.stopping = EarlyStopping(job.early_stopping, job.train.metric)
        if state.early_stopping:
            self.stopping.load(state.early_stopping)
        if state.schedule:
            job.schedule.load(state.schedule)
        device = job.learner.device
        # Kept on the device between control points, so that a step never waits for the host.
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.first_bad = torch.full((), math.inf, dtype=torch.float64, device=device)
        self.window = _Window()
        self.pending_steps = self.pending_images = 0
        self.next_control = 0
        self.stop = False

    # One step -------------------------------------------------------------------------------------

    def run_step(self, batches: _TimedBatches) -> None:
        job, state = self.job, self.state
        start, stop = job.steps.span(state.step)
        count = len(job.steps.micro_batches(state.step, job.world))
        weight_sum = job.learner.loss.weight_sum(job.plan.classes(state.epoch, start, stop))
        number = state.epoch * job.steps.steps_per_epoch + state.step
        part = job.learner.step(batches, count, weight_sum, job.schedule.factor(number))
        self.loss += part
        bad = torch.where(torch.isfinite(part), math.inf, float(number))
        self.first_bad = torch.minimum(self.first_bad, bad)
        state.step += 1
        if "first_step" not in state.seconds:
            state.add_seconds("first_step", time.perf_counter() - self.window.started)
        self.pending_steps += 1
        self.pending_images += stop - start

    # Control points -------------------------------------------------------------------------------

    def control(self, batches: _TimedBatches) -> Outcome | None:
        """All ranks agree on loss, bad numbers and stopping; an outcome ends the run at once."""
        job, state = self.job, self.state
        asked = job.world.is_first and self.reporter.stop_asked()
        wishes = self.loss.new_tensor([float(asked), float(self._pause())])
        mine = torch.cat([torch.stack([self.loss, self.first_bad]), wishes])
        loss, bad, stop, pause = gather_values(mine, job.world).cpu().unbind(dim=1)
        if torch.isfinite(bad).any():
            return self._non_finite(int(bad.min()), int(bad.argmin()))
        self._account(float(loss.sum()), batches)
        self.next_control = state.step + int(pause[0])
        if job.world.is_first:
            self._show()
        self.stop = bool(stop[0])
        return None

    def _pause(self) -> int:
        """Steps until the next control point, by this rank's clock; rank 0's figure counts."""
        seconds = time.perf_counter() - self.window.started
        steps = self.window.steps + self.pending_steps
        return max(1, min(int(_CONTROL_S * steps / max(seconds, 1e-9)), 1000))

    def _account(self, loss: float, batches: _TimedBatches) -> None:
        window = self.window
        window.steps += self.pending_steps
        window.images += self.pending_images
        window.loss_sum += loss
        window.wait_s += batches.wait_s
        self.state.loss_sum += loss
        self.state.add_seconds("data_wait", batches.wait_s)
        self.loss.zero_()
        self.pending_steps = self.pending_images = 0
        batches.wait_s = 0.0

    def _show(self) -> None:
        job, row = self.job, self.window.row()
        self.reporter.progress(
            Progress(
                epoch=self.state.epoch,
                epochs=job.train.epochs,
                step=self.state.step,
                steps_per_epoch=job.steps.steps_per_epoch,
                loss=row["loss"],
                images_per_s=row["images_per_s"],
                data_wait_share=row["data_wait_share"],
            )
        )

    def log_row(self) -> None:
        state, number = self.state, self.state.epoch * self.job.steps.steps_per_epoch + self.state.step
        rate = self.job.learner.optimizer.param_groups[0]["lr"]
        row = {"kind": "step", "epoch": state.epoch, "step": number, "time": time.time(), "lr": rate}
        state.history.append(row | self.window.row())
        state.add_seconds("train", time.perf_counter() - self.window.started)
        self.window = _Window()

    def _non_finite(self, step: int, rank: int) -> Outcome:
        message = (
            f"the loss is not a finite number at step {step} (epoch {step // self.job.steps.steps_per_epoch}), "
            f"first on rank {rank}. Lower optim.lr, set train.clip_norm, or look at the images of that step."
        )
        failure = Failure(kind="non_finite_loss", message=message, rank=rank, step=step)
        return Outcome(status="failed", state=self.state, failure=failure)

    def _stop(self) -> Outcome:
        self.save()
        return Outcome(status="stopped", state=self.state)

    # Epochs ---------------------------------------------------------------------------------------

    def run_epoch(self) -> Outcome | None:
        """The rest of the present epoch, then its evaluation, selection and checkpoint."""
        job, state = self.job, self.state
        self.window, self.next_control = _Window(), 0
        requests = training_requests(job.plan, job.steps, job.world, state.epoch, state.step)
        stream = job.loader.load(requests)
        batches = _TimedBatches(stream)
        try:
            while state.step < job.steps.steps_per_epoch:
                self.run_step(batches)
                ended = self._between_steps(batches)
                if ended:
                    return ended
        finally:
            if hasattr(stream, "close"):
                stream.close()
        return self.end_epoch()

    def _between_steps(self, batches: _TimedBatches) -> Outcome | None:
        job, step = self.job, self.state.step
        last = step == job.steps.steps_per_epoch
        log = last or step % job.train.log_every_steps == 0
        every = job.checkpoint.every_steps
        save = bool(every) and step % every == 0 and not last
        if not (log or save or step >= self.next_control):
            return None
        failed = self.control(batches)
        if failed:
            return failed
        if log:
            self.log_row()
        if self.stop:
            return self._stop()
        if save:
            self.save()
        return None

    def end_epoch(self) -> Outcome | None:
        job, state = self.job, self.state
        started = time.perf_counter()
        figures = job.evaluate()
        state.add_seconds("evaluate", time.perf_counter() - started)
        if not math.isfinite(figures["loss"]):
            return self._non_finite((state.epoch + 1) * job.steps.steps_per_epoch - 1, job.world.rank)
        row = self._epoch_row(figures)
        improved = self._judge(figures, row["step"])
        state.history.append({**row, "selected": improved})
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        if job.world.is_first:
            if improved and state.selection:
                self.reporter.publish_model(state.selection)
            self.reporter.publish_history(state.history)
        self.save(figures)
        return None

    def _judge(self, figures: dict[str, float], step: int) -> bool:
        """Selection, patience and plateau hear the epoch's figures; whether the epoch is the best so far."""
        job, state = self.job, self.state
        value = figures[job.train.metric]
        verdict = self.stopping.update(value)
        job.schedule.end_epoch(figures["loss"])
        state.stopped_early = verdict.stop
        if verdict.improved:
            state.selection = Selection(epoch=state.epoch, step=step, metric=job.train.metric, value=value)
        return verdict.improved

    def _epoch_row(self, figures: dict[str, float]) -> dict[str, Any]:
        job, state = self.job, self.state
        rows = [row for row in state.history if row["kind"] == "step" and row["epoch"] == state.epoch]
        return {
            "kind": "epoch",
            "epoch": state.epoch,
            "step": (state.epoch + 1) * job.steps.steps_per_epoch,
            "time": time.time(),
            "lr": job.learner.optimizer.param_groups[0]["lr"],
            "train_loss": state.loss_sum / job.steps.steps_per_epoch,
            **{f"val_{name}": value for name, value in figures.items()},
            "images_per_s": sum(row["images_per_s"] for row in rows) / max(len(rows), 1),
        }

    def save(self, figures: dict[str, float] | None = None) -> None:
        """A checkpoint at the present position, by all ranks together."""
        job, state = self.job, self.state
        started = time.perf_counter()
        state.early_stopping, state.schedule = self.stopping.state(), job.schedule.state()
        name = checkpoint_name(Position(state.epoch, state.step, job.attempt))
        write = snapshot_checkpoint(job.learner, state) if job.world.is_first else None
        self.reporter.save(name, write, {"epoch": state.epoch, "step": state.step, **(figures or {})})
        state.add_seconds("checkpoint", time.perf_counter() - started)


def run_loop(job: Job, state: TrainState, reporter: Reporter) -> Outcome:
    """Train from `state` to the last epoch, an early stop, a request to stop, or a failure."""
    run = _Run(job, state, reporter)
    while state.epoch < job.train.epochs and not state.stopped_early:
        ended = run.run_epoch()
        if ended:
            return ended
    if state.selection is None:
        message = (
            f"no epoch had a defined val {job.train.metric}, so none could be selected. Choose another train.metric."
        )
        return Outcome(status="failed", state=state, failure=Failure(kind="nothing_selected", message=message))
    return Outcome(status="finished", state=state)
