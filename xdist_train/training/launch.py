"""A configuration becomes a run: checks, connection, claim, Ray Train job, and the record of how it ended.

Everything that can be refused is refused before anything is written.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from cluster.config import dump_yaml
from cluster.errors import InputError, RunFailedError, StoppedError, XdistError
from cluster.runs import CONFIG, RunFolder, evaluation_key
from cluster.session import ClusterResources, cluster_resources, connect, start_here
from cluster.store import Store
from dataloading.dataset import SPLITS
from xdist_train.config import Config, identity_digest
from xdist_train.evidence.cams.job import explain_run
from xdist_train.training.job import Job, build_trainer, wait_limit
from xdist_train.training.live import live_line
from xdist_train.training.messages import STOPPED, MonitorView
from xdist_train.training.monitor import RunMonitor
from xdist_train.training.preflight import (
    Prepared,
    already_finished,
    check_fit,
    check_nodes,
    prepare,
    with_absolute_paths,
)
from xdist_train.training.record import RunRecord, first_record
from xdist_train.training.watch import Guide, StopWish, Watch

__all__ = ["LaunchResult", "launch"]


@dataclass(frozen=True)
class LaunchResult:
    """Where a finished run lies, and its figures by split."""

    run_uri: str
    selection: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def launch(
    config: Config,
    *,
    command: str,
    console: Console,
    label: str = "run",
    place: Store | None = None,
    parent: str = "",
    guide: Guide | None = None,
) -> LaunchResult:
    """Train, evaluate and record one run.

    Args:
        command: what the user typed, for `run.json`.
        label: start of an automatic run name, usually the recipe's.
        place: where the run folder lies, if not directly in `storage.uri`.
        parent: what the run is a part of (a search), for `run.json`.
        guide: hears of the run and may end it; what it ends as pruned is no error.

    Raises:
        InputError: something the user gave cannot work; nothing was written.
        RunFailedError: the run failed in a way that would come again.
        StoppedError: the run was asked to stop and left a checkpoint.
    """
    config = with_absolute_paths(config)
    prepared = prepare(config, label, place)
    if already_finished(prepared, config):
        said = f"run {prepared.folder.name!r} has already finished; no training to do."
        console.print(said, highlight=False, markup=False)
        if config.cam.after:
            with connect() as ray:
                _explain(ray, config, prepared.folder, console)
        return _result(prepared.folder, prepared.earlier)
    with connect() as ray:
        values = _launch(ray, config, prepared, console, command=command, parent=parent, guide=guide)
        if config.cam.after and values["status"] == "finished":
            _explain(ray, config, prepared.folder, console)
    return _result(prepared.folder, values)


def _launch(
    ray: Any,
    config: Config,
    prepared: Prepared,
    console: Console,
    *,
    command: str,
    parent: str,
    guide: Guide | None,
) -> dict[str, Any]:
    """One job on a cluster; what `run.json` says in the end."""
    with live_line(console) as line, StopWish() as wish:
        resources = cluster_resources(ray)
        use_gpu = check_fit(config, prepared.dataset, resources)
        check_nodes(ray, config, prepared)
        if wish.asked:
            raise StoppedError("stopped before the run began; nothing was written.")
        record = _claim(config, prepared, command, parent, resources, use_gpu)
        console.print(f"run folder: {prepared.folder.store.uri}", highlight=False, markup=False, soft_wrap=True)
        monitor = start_here(ray, RunMonitor, f"xdist-monitor:{record.folder.name}:{record.folder.driver}")
        wait_s = wait_limit(config.scale, resources)
        watch = Watch(ray, monitor, config, record, line, wish, guide, use_gpu=use_gpu, wait_s=wait_s)
        build = partial(build_trainer, config, prepared, monitor, use_gpu=use_gpu, wait_s=wait_s)
        _train(ray, build, monitor, record, watch, wish)
    return record.values


def _explain(ray: Any, config: Config, folder: RunFolder, console: Console) -> None:
    """Class activation maps, as this start asks for them, on what its training has freed."""
    explain_run(ray, folder.store.uri, config.cam, console)


def _claim(
    config: Config, prepared: Prepared, command: str, parent: str, resources: ClusterResources, use_gpu: bool
) -> RunRecord:
    folder = prepared.folder
    number = folder.claim_new() if config.run.resume == "never" else folder.claim()
    if not number:
        raise InputError(f"run.name {folder.name!r} was taken by another start a moment ago. Choose another name.")
    folder.publish(CONFIG, dump_yaml(config).encode())
    record = first_record(
        folder,
        prepared.earlier,
        command=command,
        parent=parent or None,
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


def _train(ray: Any, build: Callable[..., Any], monitor: Any, record: RunRecord, watch: Watch, wish: StopWish) -> None:
    """Jobs, one after the other where a node of the workers goes, and the record of how the last one ended."""
    started = time.perf_counter()
    try:
        while True:
            job = Job(build(attempt=record.values["attempt"]))
            view = watch.follow(job)
            if not watch.moving or wish.asked or view.failure or job.finished:
                break
            ray.get(monitor.go_on.remote())
        _conclude(job, view, record, watch, time.perf_counter() - started)
    except XdistError:
        monitor.ask_stop.remote()  # workers of a cluster that is not ours would go on
        raise
    except BaseException as error:
        monitor.ask_stop.remote()
        kind = "interrupted" if isinstance(error, KeyboardInterrupt) else "defect"
        with suppress(XdistError):
            record.end("failed", reason={"kind": kind, "message": f"{type(error).__name__}: {error}"})
        raise


def _conclude(job: Job, view: MonitorView, record: RunRecord, watch: Watch, seconds: float) -> None:
    summary = job.summary or {}
    failure = view.failure or summary.get("failure")
    if failure is None and job.summary is None:
        failure = job.lost(watch.hang)
    common = {
        **watch.seen(view),
        "worker_seconds": record.values["worker_seconds"] + watch.worker_seconds,
        "group_starts": view.group_starts,
    }
    if failure and failure.kind == STOPPED:
        record.end(watch.stopped_as, **common)
        if watch.stopped_as == "pruned":
            return
        raise StoppedError(
            f"run {record.folder.name!r} was stopped while it had no workers; its last checkpoint is as it was. "
            f"The same command with run.name={record.folder.name} run.resume=auto goes on."
        )
    if failure:
        record.end("failed", reason={"kind": failure.kind, "message": failure.message}, **common)
        error = InputError(failure.message) if failure.kind == "bad_input" else None
        raise error or RunFailedError(failure.kind, failure.message)
    stopped = summary["status"] == "stopped"
    tests = record.values["test_evaluations"] + ("test" in summary["evaluated"])
    record.end(
        watch.stopped_as if stopped else summary["status"],
        selected=summary["selection"],
        epochs=summary["epochs"],
        samples=summary["samples"],
        stopped_early=summary["stopped_early"],
        seconds={**summary["seconds"], "job": seconds},
        test_evaluations=tests,
        **common,
    )
    if stopped and watch.stopped_as == "stopped":
        raise StoppedError(
            f"run {record.folder.name!r} stopped at epoch {summary['epochs'] + 1}, behind a checkpoint. "
            f"The same command with run.name={record.folder.name} run.resume=must goes on."
        )


def _result(folder: RunFolder, values: dict[str, Any]) -> LaunchResult:
    splits = [split for split in SPLITS if evaluation_key(split) in values["complete"]]
    reports = {split: folder.store.read_json(evaluation_key(split)) for split in splits}
    return LaunchResult(folder.store.uri, values["selected"], reports, values["seconds"])
