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
from typing import Any, Protocol

import torch

from cluster.store import RETRY_S
from cluster.world import World
from dataloading.loading.batch import Batch
from dataloading.loading.plan import Plan, Request, StepPlan, samples_digest, training_requests
from xdist_train.config import CheckpointConfig, EarlyStoppingConfig, TrainConfig
from xdist_train.models.export import Selection
from xdist_train.training.checkpoint import Position, Snapshot, Snapshots, checkpoint_name
from xdist_train.training.collectives import gather_values
from xdist_train.training.early_stopping import EarlyStopping
from xdist_train.training.learner import Learner
from xdist_train.training.messages import Failure, Progress
from xdist_train.training.optim import Schedule
from xdist_train.training.pulse import COMPUTING, MEETING, SAVING, WAITING, Pulse
from xdist_train.training.state import Outcome, TrainState

__all__ = ["Job", "MicroBatches", "Reporter", "Saving", "run_loop"]

logger = logging.getLogger(__name__)

_SAMPLES = 2**40  # sums of this many ranks' digests are exact in float64
_CONTROL_S = 1.0  # aim: ranks agree about stopping and bad numbers this often


class MicroBatches(Protocol):
    """Where batches come from: `Loader`, or any fake."""

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Batches in the order of the requests."""
        ...


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A checkpoint of a position, and what else is to be kept with it."""

    name: str
    metrics: dict[str, Any]
    snapshot: Snapshot | None
    """Rank 0's; None on the others."""
    selection: Selection | None = None
    """Set if the snapshot's weights are the best so far."""
    history: list[dict[str, Any]] | None = None
    """All rows so far, at an epoch's end."""


class Reporter(Protocol):
    """The loop's only way out. `save` is called by all ranks alike, the others by rank 0."""

    def progress(self, progress: Progress) -> None:
        """Show where the run is."""
        ...

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        ...

    def make_room(self) -> None:
        """Wait, if earlier savings are still on their way, until one more may be."""
        ...

    def save(self, saving: Saving) -> None:
        """Keep a saving; returns before it is kept."""
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
    pulse: Pulse = field(default_factory=Pulse)


@dataclass
class _Window:
    """Work and time since the last row of kind `step`, or since this process began."""

    steps: int = 0
    images: int = 0
    wait_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def speeds(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "images_per_s": self.images / seconds,
            "step_s": seconds / max(self.steps, 1),
            "data_wait_share": min(self.wait_s / seconds, 1.0),
        }


class _WatchedBatches:
    """An iterator that counts the seconds in which the loop waited for it, and which samples came."""

    def __init__(self, batches: Iterator[Batch], pulse: Pulse) -> None:
        self.batches, self.pulse = batches, pulse
        self.wait_s, self.samples = 0.0, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        self.pulse.mark(WAITING)
        try:
            batch = next(self.batches)
        finally:
            self.wait_s += time.perf_counter() - started
        self.pulse.mark(COMPUTING)
        self.samples += samples_digest(batch.epoch, batch.step, batch.index, batch.rows.numpy())
        return batch


class _Run:
    """One call of `run_loop`: the pieces that steps and epochs share."""

    def __init__(self, job: Job, state: TrainState, reporter: Reporter) -> None:
        self.job, self.state, self.reporter = job, state, reporter
        self.snapshots = Snapshots()
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

    def run_step(self, batches: _WatchedBatches) -> None:
        job, state = self.job, self.state
        start, stop = job.steps.span(state.step)
        count = len(job.steps.micro_batches(state.step, job.world))
        weight_sum = job.learner.loss.weight_sum(job.plan.classes(state.epoch, start, stop))
        number = state.epoch * job.steps.steps_per_epoch + state.step
        job.pulse.at(state.epoch, state.step)
        part = job.learner.step(batches, count, weight_sum, job.schedule.factor(number))
        if job.learner.average:
            job.learner.average.update(number + 1)
        self.loss += part
        bad = torch.where(torch.isfinite(part), math.inf, float(number))
        self.first_bad = torch.minimum(self.first_bad, bad)
        state.step += 1
        job.pulse.end_step()
        if "first_step" not in state.seconds:
            state.add_seconds("first_step", time.perf_counter() - self.window.started)
        self.pending_steps += 1
        self.pending_images += stop - start

    # Control points -------------------------------------------------------------------------------

    def control(self, batches: _WatchedBatches) -> Outcome | None:
        """All ranks agree on loss, bad numbers and stopping; an outcome ends the run at once."""
        job, state = self.job, self.state
        asked = job.world.is_first and self.reporter.stop_asked()
        wishes = self.loss.new_tensor([float(asked), float(self._pause()), float(batches.samples % _SAMPLES)])
        mine = torch.cat([torch.stack([self.loss, self.first_bad]), wishes])
        job.pulse.mark(MEETING)
        loss, bad, stop, pause, samples = gather_values(mine, job.world).cpu().unbind(dim=1)
        if torch.isfinite(bad).any():
            return self._non_finite(int(bad.min()), int(bad.argmin()))
        new_steps, new_images = self.pending_steps, self.pending_images
        self._account(float(loss.sum()), batches)
        state.samples = (state.samples + int(samples.sum())) % _SAMPLES
        self.next_control = state.step + int(pause[0])
        if job.world.is_first:
            self._show(new_steps, new_images)
        self.stop = bool(stop[0])
        return None

    def _pause(self) -> int:
        """Steps until the next control point, by this rank's clock; rank 0's figure counts."""
        seconds = time.perf_counter() - self.window.started
        steps = self.window.steps + self.pending_steps
        return max(1, min(int(_CONTROL_S * steps / max(seconds, 1e-9)), 1000))

    def _account(self, loss: float, batches: _WatchedBatches) -> None:
        window = self.window
        window.steps += self.pending_steps
        window.images += self.pending_images
        window.wait_s += batches.wait_s
        self.state.loss_sum += loss
        self.state.row_loss_sum += loss
        self.state.row_steps += self.pending_steps
        self.state.add_seconds("data_wait", batches.wait_s)
        self.loss.zero_()
        self.pending_steps = self.pending_images = 0
        batches.wait_s, batches.samples = 0.0, 0

    def _show(self, new_steps: int, new_images: int) -> None:
        job = self.job
        self.reporter.progress(
            Progress(
                epoch=self.state.epoch,
                epochs=job.train.epochs,
                step=self.state.step,
                steps_per_epoch=job.steps.steps_per_epoch,
                loss=self._row_loss(),
                new_steps=new_steps,
                new_images=new_images,
                **self.window.speeds(),
            )
        )

    def log_row(self) -> None:
        state, number = self.state, self.state.epoch * self.job.steps.steps_per_epoch + self.state.step
        rate = self.job.learner.rate
        row = {"kind": "step", "epoch": state.epoch, "step": number, "time": time.time(), "lr": rate}
        state.history.append(row | {"loss": self._row_loss()} | self.window.speeds())
        state.add_seconds("train", time.perf_counter() - self.window.started)
        self.window = _Window()
        state.row_loss_sum, state.row_steps = 0.0, 0

    def _row_loss(self) -> float:
        return self.state.row_loss_sum / max(self.state.row_steps, 1)

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
        job.learner.begin_epoch(state.epoch)
        self.window, self.next_control = _Window(), 0
        requests = training_requests(job.plan, job.steps, job.world, state.epoch, state.step)
        stream = job.loader.load(requests)
        batches = _WatchedBatches(stream, job.pulse)
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

    def _between_steps(self, batches: _WatchedBatches) -> Outcome | None:
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
        job.learner.set_epoch(state.epoch)
        self.save(figures, selection=state.selection if improved else None, history=list(state.history))
        return Outcome(status="stopped", state=state) if self._stop_agreed() else None

    def _stop_agreed(self) -> bool:
        """Whether the run is asked to stop, on all ranks alike."""
        asked = self.job.world.is_first and self.reporter.stop_asked()
        self.job.pulse.mark(MEETING)
        return bool(gather_values(self.loss.new_tensor([float(asked)]), self.job.world)[0, 0])

    def _judge(self, figures: dict[str, float], step: int) -> bool:
        """Selection, patience and plateau hear the epoch's figures; whether the epoch is the best so far."""
        job, state = self.job, self.state
        value = figures[job.train.metric]
        verdict = self.stopping.update(figures)
        state.stopped_early = verdict.stop
        if job.schedule.end_epoch(figures["loss"], verdict.exhausted):
            self.stopping.begin_anew()
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
            "lr": job.learner.rate,
            "train_loss": state.loss_sum / job.steps.steps_per_epoch,
            "samples": f"{state.samples:010x}",
            **{f"val_{name}": value for name, value in figures.items()},
            "images_per_s": sum(row["images_per_s"] for row in rows) / max(len(rows), 1),
        }

    def save(
        self,
        figures: dict[str, float] | None = None,
        *,
        selection: Selection | None = None,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        """A checkpoint at the present position, by all ranks together."""
        job, state = self.job, self.state
        started = time.perf_counter()
        job.pulse.mark(SAVING, RETRY_S)
        state.early_stopping, state.schedule = self.stopping.state(), job.schedule.state()
        snapshot = None
        if job.world.is_first:
            self.reporter.make_room()
            snapshot = self.snapshots.take(job.learner, state)
        self.reporter.save(
            Saving(
                name=checkpoint_name(Position(state.epoch, state.step, job.attempt)),
                metrics={"epoch": state.epoch, "step": state.step, **(figures or {})},
                snapshot=snapshot,
                selection=selection,
                history=history,
            )
        )
        job.pulse.mark(COMPUTING)
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
