"""What each Ray worker runs: the thin shell around the loop.

It turns an order (plain values) into an assembly, and the loop's wishes into Ray's calls. What would fail
again is returned or left with the monitor, so that Ray retries only what may go better.
"""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from cluster.errors import InputError, RunFailedError, StoreRefusedError
from cluster.runs import CHECKPOINTS, RunFolder, StaleDriverError
from cluster.store import RETRY_S, open_store
from cluster.world import World
from dataloading.dataset import open_dataset
from xdist_train.config import Config
from xdist_train.models.export import load_model
from xdist_train.models.weights import StoredWeights
from xdist_train.training.assembly import Assembly
from xdist_train.training.checkpoint import DamagedCheckpointError, fetch_checkpoint, parse_checkpoint_name
from xdist_train.training.collectives import gather_values
from xdist_train.training.gauges import RunGauges, run_label
from xdist_train.training.loop import Saving, run_loop
from xdist_train.training.messages import Beat, Failure, Progress
from xdist_train.training.publish import publish_evaluation
from xdist_train.training.pulse import SAVING, STARTING, Pulse
from xdist_train.training.resume import resume
from xdist_train.training.state import Outcome, TrainState
from xdist_train.training.upload import Uploads

__all__ = ["WorkerOrder", "run_worker"]

logger = logging.getLogger(__name__)

# What fails again; Ray should not run it four times. InputError is a ValueError and comes first.
_FAILS_AGAIN: dict[str, type[Exception]] = {
    "bad_input": InputError,
    "stale_driver": StaleDriverError,
    "damaged_checkpoints": DamagedCheckpointError,
    "storage_refused": StoreRefusedError,
}
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
    group = ray.get(order.monitor.begin.remote()) if world.is_first else 0
    known: Failure | None = ray.get(order.monitor.failure.remote())
    if known is not None:
        return {"status": "failed", "failure": known}
    pulse, node = Pulse(), ray.get_runtime_context().get_node_id()
    try:
        gauges = RunGauges(run_label(order.run_uri, order.config.storage.uri), world, ray.train.torch.get_device())

        def tell(beat: Beat) -> None:
            order.monitor.beat.remote(beat)
            gauges.beat(beat.group)

        with pulse.told(tell, world.rank, node, order.config.failure.hang_s):
            return _train(order, world, pulse, group, gauges)
    except Exception as error:
        # Raised, not returned: the other ranks wait for this one, and a restarted group returns at once.
        _tell_failure(order, world, error)
        raise
    finally:
        order.monitor.leave.remote(world.rank)


def _tell_failure(order: WorkerOrder, world: World, error: Exception) -> None:
    """Leave with the monitor what would fail again; all else is for Ray to try again."""
    failure = _failure_of(order, world.rank, world.size, error)
    if failure is not None:
        ray.get(order.monitor.fail.remote(failure))


def _failure_of(order: WorkerOrder, rank: int, world_size: int, error: Exception) -> Failure | None:
    for kind, types in _FAILS_AGAIN.items():
        if isinstance(error, types):
            return Failure(kind=kind, message=str(error), rank=rank)
    if isinstance(error, RunFailedError):
        return Failure(kind=error.kind, message=str(error), rank=rank)
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(kind="out_of_memory", message=_out_of_memory(order, error), rank=rank)
    # A rank whose peers are gone meets all kinds of errors as Ray takes the group of processes away.
    if isinstance(error, _DEFECTS) and (world_size == 1 or dist.is_initialized()):
        message = f"{type(error).__name__}: {error}. This is a defect of the program; run with --debug."
        return Failure(kind="defect", message=message, rank=rank)
    return None


def _out_of_memory(order: WorkerOrder, error: torch.OutOfMemoryError) -> str:
    return (
        f"out of GPU memory with micro batches of {order.micro_batch_size} images at "
        f"{order.config.loader.image_size} px ({str(error).splitlines()[0]}). Lower train.micro_batch_size "
        "under a new run.name; a step keeps its images, but BatchNorm sees smaller batches."
    )


def _train(order: WorkerOrder, world: World, pulse: Pulse, group: int, gauges: RunGauges) -> dict[str, Any]:
    started = time.perf_counter()
    folder = RunFolder(open_store(order.run_uri), order.driver)
    torch.set_num_threads(order.config.scale.cpus_per_worker)
    _forward_warnings(order, world)
    # 1. Data, model and loop of this rank.
    attempt, pulse.group = _agree_attempt(order, folder, world, group)
    assembly = Assembly(
        order.config,
        open_dataset(order.config.data.uri),
        world=world,
        device=ray.train.torch.get_device(),
        micro_batch_size=order.micro_batch_size,
        weights=order.weights,
        attempt=attempt,
        progress=lambda what, done, total: _show_fetching(order, pulse, f"{done} of {total} {what}"),
        pulse=pulse,
    )
    try:
        # 2. Where an earlier attempt stood.
        state = _resume(order, assembly, world, attempt, folder)
        state.add_seconds("start", time.perf_counter() - started)
        # 3. The loop.
        reporter = _RayReporter(order, assembly, folder, gauges)
        outcome = run_loop(assembly.job, state, reporter)
        pulse.mark(SAVING, RETRY_S)
        reporter.wait()
        # 4. Evidence from the selected weights.
        splits = _evaluate(order, assembly, folder, outcome) if outcome.status == "finished" else []
        return _summary(outcome, attempt, splits)
    finally:
        assembly.close()


def _show_fetching(order: WorkerOrder, pulse: Pulse, what: str) -> None:
    pulse.mark(STARTING)
    order.monitor.push.remote(phase=f"fetching data: {what}")


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


def _agree_attempt(order: WorkerOrder, folder: RunFolder, world: World, group: int) -> tuple[int, int]:
    """This group's attempt and number, the same on all ranks; every group after the first claims a new attempt."""
    attempt = order.attempt
    if world.is_first:
        folder.check_owner()
        attempt = folder.claim() if group > 1 else attempt
        order.monitor.join.remote(attempt, world.size)
    mine = torch.tensor([attempt, group], dtype=torch.float64, device=ray.train.torch.get_device())
    attempt, group = (int(number) for number in gather_values(mine, world)[0])
    return attempt, group


def _resume(order: WorkerOrder, assembly: Assembly, world: World, attempt: int, folder: RunFolder) -> TrainState:
    """Where an earlier attempt stood, as far as Ray knows of it; only what `keep` put there is fetched."""
    reported = {}
    for entry in ray.train.get_all_reported_checkpoints():
        name = Path(entry.checkpoint.path).name
        position = parse_checkpoint_name(name)
        if position is not None:
            reported[position] = partial(fetch_checkpoint, folder.store.child(f"{CHECKPOINTS}/{name}"))
    return resume(reported, assembly.learner, world, f"{order.driver}-{attempt}")


def _evaluate(order: WorkerOrder, assembly: Assembly, folder: RunFolder, outcome: Outcome) -> list[str]:
    """val, and test unless switched off, with the weights in `model/`; collective."""
    started = time.perf_counter()
    _load_selected(assembly, folder, outcome.state)
    splits = ["val", "test"] if order.config.evaluate.test else ["val"]
    for split in splits:
        if assembly.world.is_first:
            order.monitor.push.remote(phase=f"evaluating {split}")
        answers = assembly.answers(split)
        assembly.pulse.mark(SAVING, RETRY_S)
        if assembly.world.is_first:
            keys = publish_evaluation(folder, assembly, split, answers)
            ray.get(order.monitor.publish.remote(keys))
    outcome.state.add_seconds("final_evaluation", time.perf_counter() - started)
    return splits


def _load_selected(assembly: Assembly, folder: RunFolder, state: TrainState) -> None:
    """The published weights into the learner, on every rank."""
    gather_values(torch.zeros(1, device=assembly.device), assembly.world)  # rank 0 has published them all
    model, description = load_model(folder.store.uri)
    assembly.learner.judged.load_state_dict(model.state_dict())
    if description.selection != state.selection and assembly.world.is_first:
        # A group was lost between publishing a model and its checkpoint, and the repeated epoch was not as good.
        logger.warning("the model in the run folder was selected at %s: its figures are given", description.selection)
    state.selection = description.selection


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
        "samples": f"{state.samples:010x}",
    }


class _RayReporter:
    """The loop's wishes as Ray calls; progress goes to the monitor without waiting for it."""

    def __init__(self, order: WorkerOrder, assembly: Assembly, folder: RunFolder, gauges: RunGauges) -> None:
        self.monitor, self.assembly, self.gauges = order.monitor, assembly, gauges
        self.uploads = Uploads(
            folder,
            assembly,
            published=lambda keys: order.monitor.publish.remote(keys),
            failed=lambda error: _tell_failure(order, assembly.world, error),
        )
        if assembly.world.is_first:
            # Publishing needs it; it takes a second or two, which must not fall into a step.
            importlib.import_module("torch.utils.tensorboard")
        self._stop = False
        self._pushed: Any = order.monitor.push.remote(phase="training")

    def progress(self, progress: Progress) -> None:
        self._pushed = self.monitor.push.remote(phase="training", progress=progress)
        self.gauges.progress(progress)

    def stop_asked(self) -> bool:
        ready, _ = ray.wait([self._pushed], timeout=0)
        if ready:
            self._stop = ray.get(self._pushed)
        return self._stop

    def make_room(self) -> None:
        self.uploads.make_room()

    def save(self, saving: Saving) -> None:
        storage = ray.train.get_context().get_storage()
        # Where it will lie; `keep` puts it there in Ray's upload thread.
        place = Checkpoint(f"{storage.experiment_fs_path}/{saving.name}", storage.storage_filesystem)

        def keep(checkpoint: Checkpoint, name: str) -> Checkpoint:
            self.uploads.keep(saving)
            return checkpoint

        ray.train.report(
            saving.metrics,
            checkpoint=place if saving.snapshot else None,
            checkpoint_dir_name=saving.name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=keep,
            delete_local_checkpoint_after_upload=False,
        )
        if saving.snapshot and saving.history:
            self.monitor.end_epoch.remote(saving.history[-1])

    def wait(self) -> None:
        """Until everything saved so far is in the run folder; its error if it cannot be."""
        if self.assembly.world.is_first:
            self.uploads.wait()
