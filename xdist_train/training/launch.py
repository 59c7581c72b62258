"""A configuration becomes a run: checks, connection, claim, Ray Train job, and the record of how it ended.

Everything that can be refused is refused before anything is written.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import torch
from rich.console import Console

from cluster.config import dump_yaml
from cluster.errors import InputError, RunFailedError, StoppedError
from cluster.runs import CHECKPOINTS, CONFIG, RunFolder, evaluation_key
from cluster.session import ClusterResources, cluster_resources, connect, on_each_node, set_start_limit
from cluster.store import open_store, ray_filesystem
from dataloading.dataset import SPLITS, Dataset, open_dataset
from dataloading.loading.cache import cache_root, count_classes, open_split
from dataloading.loading.plan import StepPlan
from xdist_train.config import Config, identity, identity_digest
from xdist_train.models.backbones import build_model, check_model
from xdist_train.models.losses import build_class_weights
from xdist_train.models.weights import StoredWeights, read_weights, require_fit, resolve_weights
from xdist_train.training.live import LiveLine, live_line
from xdist_train.training.messages import Failure, MonitorView
from xdist_train.training.monitor import RunMonitor
from xdist_train.training.node_check import NodeCheck
from xdist_train.training.optim import build_schedule
from xdist_train.training.record import RunRecord, first_record

__all__ = ["LaunchResult", "launch"]

_POLL_S = 0.5
_NODE_CHECK_S = 60.0
_WAIT_S, _WAIT_AUTOSCALER_S = 60.0, 1800.0


@dataclass(frozen=True)
class LaunchResult:
    """Where a finished run lies, and its figures by split."""

    run_uri: str
    selection: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Prepared:
    """What the checks without Ray found."""

    dataset: Dataset
    folder: RunFolder
    earlier: dict[str, Any]
    micro_batch_size: int
    identity: dict[str, Any]
    weights: StoredWeights | None


def launch(config: Config, *, command: str, console: Console, label: str = "run") -> LaunchResult:
    """Train, evaluate and record one run.

    Args:
        command: what the user typed, for `run.json`.
        label: start of an automatic run name, usually the recipe's.

    Raises:
        InputError: something the user gave cannot work; nothing was written.
        RunFailedError: the run failed in a way that would come again.
        StoppedError: the run was asked to stop and left a checkpoint.
    """
    config = _with_absolute_paths(config)
    prepared = _prepare(config, label)
    if _already_finished(prepared, config):
        said = f"run {prepared.folder.name!r} has already finished; nothing to do."
        console.print(said, highlight=False, markup=False)
        return _result(prepared.folder, prepared.earlier)
    with connect() as ray, live_line(console) as line:
        resources = cluster_resources(ray)
        set_start_limit(config.scale.wait_s or (_WAIT_AUTOSCALER_S if resources.autoscaling else _WAIT_S))
        use_gpu = _check_fit(config, prepared.dataset, resources)
        _check_nodes(ray, config, prepared)
        record = _claim(config, prepared, command, resources, use_gpu)
        console.print(f"run folder: {prepared.folder.store.uri}", highlight=False, markup=False, soft_wrap=True)
        _train(ray, config, prepared, record, use_gpu, line)
    return _result(prepared.folder, record.values)


# Before Ray -------------------------------------------------------------------------------------------


def _prepare(config: Config, label: str) -> _Prepared:
    if not config.data.uri:
        raise InputError("data.uri is not set: give the packed dataset to train on, data.uri=FOLDER.")
    dataset = open_dataset(config.data.uri)
    name = config.run.name or f"{label}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(open_store(config.storage.uri).child(name), driver=uuid.uuid4().hex)
    earlier = _check_name(config, folder)
    micro = config.train.micro_batch_size or int(earlier.get("micro_batch_size") or _micro_batch_size(config))
    same = identity(config, dataset.info.fingerprint, micro)
    _check_identity(folder.name, earlier, same)
    _check_splits(config, dataset, micro)
    build_schedule(config.schedule, 1, config.train.epochs)
    weights = _check_model(config, len(dataset.info.classes))
    return _Prepared(dataset, folder, earlier, micro, same, weights)


def _with_absolute_paths(config: Config) -> Config:
    """Workers and later commands run elsewhere: every path of this machine is spelled from its root."""
    weights = config.model.weights
    if weights not in ("none", "imagenet"):
        weights = open_store(weights).uri
    return replace(
        config,
        data=replace(config.data, uri=config.data.uri and open_store(config.data.uri).uri),
        storage=replace(config.storage, uri=open_store(config.storage.uri).uri),
        loader=replace(config.loader, cache_dir=str(cache_root(config.loader.cache_dir))),
        model=replace(config.model, weights=weights),
    )


def _check_name(config: Config, folder: RunFolder) -> dict[str, Any]:
    """What `run.json` said before this start; empty for a new run."""
    exists = folder.exists()
    if exists and config.run.resume == "never":
        raise InputError(
            f"run.name {folder.name!r} is taken in {config.storage.uri!r}. Choose another name, "
            "or go on with it by run.resume=auto."
        )
    if not exists and config.run.resume == "must":
        raise InputError(f"run.resume=must, but there is no run {folder.name!r} in {config.storage.uri!r}.")
    return folder.read_run()


def _micro_batch_size(config: Config) -> int:
    return -(-config.train.batch_size // config.scale.num_workers)


def _check_identity(name: str, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    before = earlier.get("identity", now)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if not changed:
        return
    shown = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed[:4])
    raise InputError(
        f"run {name!r} cannot go on with another configuration: {shown}. "
        "Start it under a new run.name, or give the values it was started with."
    )


def _check_splits(config: Config, dataset: Dataset, micro_batch_size: int) -> None:
    counts = count_classes(dataset, config.data.split)
    if dataset.store.is_local:  # its shards are verified here; those of a store, as they reach the nodes
        open_split(dataset, config.data.split, "train", cache_root(config.loader.cache_dir))
    missing = [name for name, count in zip(dataset.info.classes, counts["train"], strict=True) if not count]
    if missing:
        raise InputError(f"data.split={config.data.split}: no training image of class {', '.join(missing)}.")
    if sum(count > 0 for count in counts["val"]) < 2:
        raise InputError(
            f"data.split={config.data.split}: val has images of one class only, so no figure on it can select an "
            "epoch. Pack with other pack.fractions or pack.seed, or give more patients."
        )
    build_class_weights(config.loss, counts["train"])
    steps = StepPlan(sum(counts["train"]), config.train.step_size, micro_batch_size)
    if steps.num_micro_batches(0) < config.scale.num_workers:
        raise InputError(
            f"scale.num_workers={config.scale.num_workers}, but a step of {steps.span(0)[1]} images has only "
            f"{steps.num_micro_batches(0)} micro batches of {micro_batch_size}. Use fewer workers, a larger "
            "train.batch_size or a smaller train.micro_batch_size."
        )


def _check_model(config: Config, num_classes: int) -> StoredWeights | None:
    """The network can be built, takes images of this size, and its first weights fit: by shapes alone."""
    with torch.device("meta"):
        model = build_model(config.model, num_classes)
    check_model(model, config.model.backbone, config.loader.image_size)
    store = open_store(config.storage.uri)
    weights = resolve_weights(config.model.weights, config.model.backbone, store)
    if weights:
        require_fit(model, read_weights(store, weights), weights.source)
    return weights


def _already_finished(prepared: _Prepared, config: Config) -> bool:
    earlier = prepared.earlier
    return earlier.get("status") == "finished" and (
        earlier.get("stopped_early", False) or earlier.get("epochs", 0) >= config.train.epochs
    )


# With Ray, before the claim ---------------------------------------------------------------------------


def _check_fit(config: Config, dataset: Dataset, resources: ClusterResources) -> bool:
    """Whether workers get a GPU each; refuses what the cluster could never hold."""
    scale = config.scale
    use_gpu = scale.use_gpu == "yes" or (scale.use_gpu == "auto" and resources.gpus >= scale.num_workers)
    wanted = {"CPU": (scale.num_workers * scale.cpus_per_worker, resources.cpus)}
    if use_gpu:
        wanted["GPU"] = (scale.num_workers, resources.gpus)
    for kind, (need, have) in wanted.items():
        if need > have:
            raise InputError(
                f"scale.num_workers={scale.num_workers} (scale.cpus_per_worker={scale.cpus_per_worker}) "
                f"need {need:g} {kind}s, but the cluster has {have:g} on {resources.nodes} node(s). "
                "Use fewer workers, or add nodes."
            )
    places = {"data.uri": dataset.store, "storage.uri": open_store(config.storage.uri)}
    local = [f"{key}={store.uri!r}" for key, store in places.items() if store.is_local]
    if resources.nodes > 1 and local:
        raise InputError(
            f"{' and '.join(local)}: a path of this machine, but the cluster has {resources.nodes} nodes. A run on "
            "several nodes needs storage that all reach: give s3://BUCKET/PREFIX."
        )
    return use_gpu


def _check_nodes(ray: Any, config: Config, prepared: _Prepared) -> None:
    """Every node can use the storage and hold the data; on a single machine this process speaks for it."""
    check = NodeCheck.of(config)
    if prepared.folder.store.is_local and prepared.dataset.store.is_local:
        check.require({platform.node(): check()})
    else:
        check.require(on_each_node(ray, check, _NODE_CHECK_S))


def _claim(config: Config, prepared: _Prepared, command: str, resources: ClusterResources, use_gpu: bool) -> RunRecord:
    folder = prepared.folder
    number = folder.claim_new() if config.run.resume == "never" else folder.claim()
    if not number:
        raise InputError(f"run.name {folder.name!r} was taken by another start a moment ago. Choose another name.")
    folder.publish(CONFIG, dump_yaml(config).encode())
    record = first_record(
        folder,
        prepared.earlier,
        command=command,
        fingerprint=prepared.dataset.info.fingerprint,
        split=config.data.split,
        identity_digest=identity_digest(prepared.identity),
        identity=prepared.identity,
        micro_batch_size=prepared.micro_batch_size,
        attempt=number,
        workers=config.scale.num_workers,
        hardware={"host": platform.node(), "cpus": resources.cpus, "gpus": resources.gpus, "use_gpu": use_gpu},
    )
    record.write(complete=sorted({*record.values["complete"], CONFIG}))
    return record


# The job ----------------------------------------------------------------------------------------------


def _train(ray: Any, config: Config, prepared: _Prepared, record: RunRecord, use_gpu: bool, line: LiveLine) -> None:
    started = time.perf_counter()
    monitor = ray.remote(num_cpus=0)(RunMonitor).remote()
    job = _Job(_build_trainer(config, prepared, monitor, record.values["attempt"], use_gpu))
    try:
        with _stop_on_signals(monitor):
            while job.running(_POLL_S):
                view = ray.get(monitor.read.remote())
                line.show(view)
                record.beat(sorted({*record.values["complete"], *view.published}))
    except KeyboardInterrupt:
        record.end("failed", reason={"kind": "interrupted", "message": "interrupted twice, without a checkpoint"})
        raise
    view = ray.get(monitor.read.remote())
    line.show(view)
    _conclude(job, view, record, config, time.perf_counter() - started)


class _Job:
    """`trainer.fit()` in a thread, so that the main thread can draw and hear signals."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.summary: dict[str, Any] | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-train-fit", daemon=True)
        self._thread.start()

    def running(self, wait_s: float) -> bool:
        """Wait at most so long for the end; whether it goes on."""
        self._thread.join(wait_s)
        return self._thread.is_alive()

    def _fit(self) -> None:
        try:
            self.summary = self.trainer.fit().return_value
        except Exception as error:  # noqa: BLE001 - the thread's entry point; the main thread says what it was
            self.error = error


def _build_trainer(config: Config, prepared: _Prepared, monitor: Any, attempt: int, use_gpu: bool) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from xdist_train.training.worker import WorkerOrder, run_worker

    scale, folder = config.scale, prepared.folder
    order = WorkerOrder(
        config=config,
        run_uri=folder.store.uri,
        driver=folder.driver,
        monitor=monitor,
        micro_batch_size=prepared.micro_batch_size,
        attempt=attempt,
        weights=prepared.weights,
    )
    filesystem, path = ray_filesystem(folder.store.uri)
    resources = {"CPU": scale.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})
    return TorchTrainer(
        run_worker,
        train_loop_config={"order": order},
        scaling_config=ScalingConfig(num_workers=scale.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            failure_config=FailureConfig(max_failures=config.failure.max_failures, controller_failure_limit=3),
        ),
    )


@contextmanager
def _stop_on_signals(monitor: Any) -> Iterator[None]:
    """SIGINT and SIGTERM ask the run to stop behind a checkpoint; a second SIGINT ends at once."""

    def ask(number: int, frame: object) -> None:
        monitor.ask_stop.remote()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(job: _Job, view: MonitorView, record: RunRecord, config: Config, seconds: float) -> None:
    complete = sorted({*record.values["complete"], *view.published})
    worker_seconds = record.values["worker_seconds"] + seconds * config.scale.num_workers
    summary = job.summary or {}
    failure = view.failure or summary.get("failure") or _lost(job)
    common = {
        "notes": list(view.notes),
        "complete": complete,
        "worker_seconds": worker_seconds,
        "group_starts": view.group_starts,
    }
    if failure:
        record.end("failed", reason={"kind": failure.kind, "message": failure.message}, **common)
        error = InputError(failure.message) if failure.kind == "bad_input" else None
        raise error or RunFailedError(failure.kind, failure.message)
    tests = record.values["test_evaluations"] + ("test" in summary["evaluated"])
    record.end(
        summary["status"],
        selected=summary["selection"],
        epochs=summary["epochs"],
        stopped_early=summary["stopped_early"],
        seconds={**summary["seconds"], "job": seconds},
        test_evaluations=tests,
        **common,
    )
    if summary["status"] == "stopped":
        raise StoppedError(
            f"run {record.folder.name!r} stopped at epoch {summary['epochs'] + 1}, behind a checkpoint. "
            f"The same command with run.name={record.folder.name} run.resume=must goes on."
        )


def _lost(job: _Job) -> Failure | None:
    """What Ray gave up on; an error that is not Ray's word about the run is a defect and is raised."""
    from ray.train import TrainingFailedError

    if job.error is None:
        return None
    if not isinstance(job.error, TrainingFailedError):
        raise job.error
    lines = [line.strip() for line in str(job.error).splitlines() if line.strip()]
    return Failure(kind=type(job.error).__name__, message=f"Ray gave up on the run: {' '.join(lines)[-600:]}")


def _result(folder: RunFolder, values: dict[str, Any]) -> LaunchResult:
    splits = [split for split in SPLITS if evaluation_key(split) in values["complete"]]
    reports = {split: folder.store.read_json(evaluation_key(split)) for split in splits}
    return LaunchResult(folder.store.uri, values["selected"], reports, values["seconds"])
