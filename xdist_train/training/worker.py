"""What each Ray worker runs: the thin shell around the loop.

It turns an order (plain values) into an assembly, and the loop's wishes into Ray's calls. What would fail
again is returned or left with the monitor, so that Ray retries only what may go better.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from cluster.errors import InputError, RunFailedError, StoreError
from cluster.runs import RunFolder, StaleDriverError
from cluster.store import open_store
from cluster.world import World
from dataloading.dataset import open_dataset
from xdist_train.config import Config
from xdist_train.models.export import Selection, load_model
from xdist_train.models.weights import StoredWeights
from xdist_train.training.assembly import Assembly
from xdist_train.training.checkpoint import DamagedCheckpointError, load_checkpoint, parse_checkpoint_name
from xdist_train.training.loop import run_loop
from xdist_train.training.messages import Failure, Progress
from xdist_train.training.publish import publish_evaluation, publish_history, publish_model
from xdist_train.training.state import Outcome, TrainState

__all__ = ["WorkerOrder", "run_worker"]

logger = logging.getLogger(__name__)

# A defect in the program or the data fails again; Ray should not run it four times.
_DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What the driver tells every worker."""

    config: Config
    run_uri: str
    driver: str
    monitor: Any
    micro_batch_size: int
    attempt: int
    """The driver's claim; a group that Ray restarts claims a new one."""
    weights: StoredWeights | None = None
    """Where to start from; None starts from the seed."""


def run_worker(values: dict[str, Any]) -> dict[str, Any]:
    """Ray's entry point. Returns a plain summary: status, failure, selection, seconds, splits evaluated."""
    order: WorkerOrder = values["order"]
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), context.get_local_rank(), context.get_node_rank())
    starts = ray.get(order.monitor.begin.remote()) if world.is_first else 0
    known: Failure | None = ray.get(order.monitor.failure.remote())
    if known is not None:
        return {"status": "failed", "failure": known}
    try:
        return _train(order, world, restarted=starts > 1)
    except StaleDriverError as error:
        # Raised, not returned: the other ranks wait for this one, and a restarted group returns at once.
        _fail(order, Failure(kind="stale_driver", message=str(error), rank=world.rank))
        raise
    except (RunFailedError, DamagedCheckpointError) as error:
        kind = error.kind if isinstance(error, RunFailedError) else "damaged_checkpoints"
        _fail(order, Failure(kind=kind, message=str(error), rank=world.rank))
        raise
    except InputError as error:
        _fail(order, Failure(kind="bad_input", message=str(error), rank=world.rank))
        raise
    except torch.OutOfMemoryError as error:
        _fail(order, Failure(kind="out_of_memory", message=_out_of_memory(order, error), rank=world.rank))
        raise
    except _DEFECTS as error:
        message = f"{type(error).__name__}: {error}. This is a defect of the program; run with --debug."
        _fail(order, Failure(kind="defect", message=message, rank=world.rank))
        raise


def _fail(order: WorkerOrder, failure: Failure) -> None:
    ray.get(order.monitor.fail.remote(failure))


def _out_of_memory(order: WorkerOrder, error: torch.OutOfMemoryError) -> str:
    return (
        f"out of GPU memory with micro batches of {order.micro_batch_size} images at "
        f"{order.config.loader.image_size} px ({str(error).splitlines()[0]}). Lower train.micro_batch_size "
        "under a new run.name; a step keeps its images, but BatchNorm sees smaller batches."
    )


def _train(order: WorkerOrder, world: World, *, restarted: bool) -> dict[str, Any]:
    started = time.perf_counter()
    folder = RunFolder(open_store(order.run_uri), order.driver)
    torch.set_num_threads(order.config.scale.cpus_per_worker)
    _forward_warnings(order, world)
    # 1. Data, model and loop of this rank.
    attempt = _agree_attempt(order, folder, world, restarted)
    assembly = Assembly(
        order.config,
        open_dataset(order.config.data.uri),
        world=world,
        device=ray.train.torch.get_device(),
        micro_batch_size=order.micro_batch_size,
        weights=order.weights,
        attempt=attempt,
        progress=lambda what, done, total: order.monitor.push.remote(phase=f"fetching data: {done} of {total} {what}"),
    )
    try:
        # 2. Where an earlier attempt stood.
        state = _resume(assembly, world)
        state.add_seconds("start", time.perf_counter() - started)
        # 3. The loop.
        reporter = _RayReporter(order, assembly, folder)
        outcome = run_loop(assembly.job, state, reporter)
        # 4. Evidence from the selected weights.
        splits = _evaluate(order, assembly, folder, outcome) if outcome.status == "finished" else []
        return _summary(outcome, attempt, splits)
    finally:
        assembly.close()


class _NoteHandler(logging.Handler):
    """Sends our packages' warnings to the monitor, and so to the user's terminal."""

    def __init__(self, monitor: Any) -> None:
        super().__init__(logging.WARNING)
        self.monitor = monitor

    def emit(self, record: logging.LogRecord) -> None:
        self.monitor.note.remote(record.getMessage())


def _forward_warnings(order: WorkerOrder, world: World) -> None:
    if world.is_first:
        for package in ("cluster", "dataloading", "xdist_train"):
            logging.getLogger(package).addHandler(_NoteHandler(order.monitor))


def _agree_attempt(order: WorkerOrder, folder: RunFolder, world: World, restarted: bool) -> int:
    """This group's attempt number, the same on all ranks; a restarted group has a new one."""
    number = order.attempt
    if world.is_first:
        folder.check_owner()
        number = folder.claim() if restarted else number
    agreed = torch.tensor([number], device=ray.train.torch.get_device())
    if world.size > 1:
        dist.broadcast(agreed, src=0)
    return int(agreed)


def _resume(assembly: Assembly, world: World) -> TrainState:
    """The newest checkpoint that verifies, else the start; says which were passed over."""
    reported = [entry.checkpoint for entry in ray.train.get_all_reported_checkpoints()]
    for checkpoint in sorted(reported, key=_position, reverse=True):
        with checkpoint.as_directory() as folder:
            try:
                return load_checkpoint(Path(folder), assembly.learner)
            except DamagedCheckpointError as error:
                if world.is_first:
                    logger.warning("%s; going back to the one before it", error)
    if reported:
        raise DamagedCheckpointError(
            f"none of the {len(reported)} checkpoints of this run can be read. Start again under another run.name."
        )
    return TrainState()


def _position(checkpoint: Checkpoint) -> tuple[int, int, int]:
    position = parse_checkpoint_name(Path(checkpoint.path).name)
    return (position.epoch, position.step, position.attempt) if position else (-1, -1, -1)


def _evaluate(order: WorkerOrder, assembly: Assembly, folder: RunFolder, outcome: Outcome) -> list[str]:
    """val, and test unless switched off, with the weights in `model/`; collective."""
    started = time.perf_counter()
    _load_selected(assembly, folder)
    splits = ["val", "test"] if order.config.evaluate.test else ["val"]
    for split in splits:
        if assembly.world.is_first:
            order.monitor.push.remote(phase=f"evaluating {split}")
        answers = assembly.answers(split)
        if assembly.world.is_first:
            keys = publish_evaluation(folder, assembly, split, answers)
            ray.get(order.monitor.publish.remote(keys))
    outcome.state.add_seconds("final_evaluation", time.perf_counter() - started)
    return splits


def _load_selected(assembly: Assembly, folder: RunFolder) -> None:
    """The published weights into the learner, on every rank."""
    model, _ = load_model(folder.store.uri)
    assembly.learner.model.load_state_dict(model.state_dict())


def _summary(outcome: Outcome, attempt: int, splits: list[str]) -> dict[str, Any]:
    state = outcome.state
    return {
        "status": outcome.status,
        "failure": outcome.failure,
        "selection": asdict(state.selection) if state.selection else None,
        "epochs": state.epoch,
        "stopped_early": state.stopped_early,
        "seconds": state.seconds,
        "attempt": attempt,
        "evaluated": splits,
    }


class _RayReporter:
    """The loop's wishes as Ray calls; progress goes to the monitor without waiting for it."""

    def __init__(self, order: WorkerOrder, assembly: Assembly, folder: RunFolder) -> None:
        self.monitor, self.assembly, self.folder = order.monitor, assembly, folder
        self._stop = False
        self._pushed: Any = order.monitor.push.remote(phase="training")

    def progress(self, progress: Progress) -> None:
        self._pushed = self.monitor.push.remote(phase="training", progress=progress)

    def stop_asked(self) -> bool:
        ready, _ = ray.wait([self._pushed], timeout=0)
        if ready:
            self._stop = ray.get(self._pushed)
        return self._stop

    def save(self, name: str, write: Callable[[Path], None] | None, metrics: dict[str, Any]) -> None:
        checkpoint = None
        if write is not None:
            self.folder.check_owner()
            folder = Path(tempfile.mkdtemp(prefix="xdist-checkpoint-"))
            try:
                write(folder)
            except OSError as error:
                raise StoreError(f"{folder}: cannot write a checkpoint ({error.strerror or error}).") from error
            checkpoint = Checkpoint.from_directory(str(folder))
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def publish_model(self, selection: Selection) -> None:
        self._published(publish_model(self.folder, self.assembly, selection))

    def publish_history(self, history: list[dict[str, Any]]) -> None:
        self._published(publish_history(self.folder, history))
        self.monitor.end_epoch.remote(history[-1])

    def _published(self, keys: list[str]) -> None:
        self.monitor.publish.remote(keys)
