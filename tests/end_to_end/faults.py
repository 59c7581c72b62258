"""Faults for tests and for the chaos script: where a run stands, and what must be equal however it was disturbed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import XdistError
from cluster.store import Store, open_store
from cluster.world import World
from dataloading.dataset import Dataset
from dataloading.loading.cache import count_classes
from dataloading.loading.plan import Plan, StepPlan, samples_digest, training_requests
from tests.end_to_end.small import Train
from xdist_train.training.launch import LaunchResult
from xdist_train.training.messages import Beat, MonitorView

LONG = ("train.batch_size=12", "train.epochs=5", "checkpoint.every_steps=3", "train.log_every_steps=2")
"""Long enough to be disturbed: 5 epochs of 12 steps, a checkpoint after every third."""
_SPEEDS = ("time", "images_per_s", "step_s", "data_wait_share")


class Running:
    """A launch in a thread, with its monitor within reach."""

    def __init__(self, ray: Any, train: Train, name: str, *overrides: str) -> None:
        self._ray, self._name = ray, name
        self.result: LaunchResult | None = None
        self.error: XdistError | None = None
        self._monitor: Any = None
        self._thread = threading.Thread(target=self._run, args=(train, overrides))
        self._thread.start()

    def _run(self, train: Train, overrides: tuple[str, ...]) -> None:
        try:
            self.result = train(self._name, *LONG, *overrides)
        except XdistError as error:
            self.error = error

    def wait_until(self, epoch: int, step: int, limit_s: float = 120) -> tuple[Beat, ...]:
        """Wait until training has come so far; the beats of all ranks, by rank."""
        deadline = time.monotonic() + limit_s
        while True:
            view = self.view()
            at = view.progress if view else None
            if view and at and (at.epoch, at.step) >= (epoch, step) and len(view.beats) == 2:
                return tuple(beat for beat, _ in sorted(view.beats, key=lambda item: item[0].rank))
            assert self._thread.is_alive(), f"{self._name} ended before epoch {epoch}, step {step}: {self.error}"
            assert time.monotonic() < deadline, f"{self._name} is not at epoch {epoch}, step {step}: {view}"
            time.sleep(0.01)

    def view(self) -> MonitorView | None:
        """What the monitor says; None before it is there."""
        if self._monitor is None:
            prefix = f"xdist-monitor:{self._name}:"
            for entry in self._ray.util.list_named_actors(all_namespaces=True):
                if entry["name"].startswith(prefix):
                    self._monitor = self._ray.get_actor(entry["name"], namespace=entry["namespace"])
        return self._ray.get(self._monitor.read.remote()) if self._monitor else None

    def finish(self, limit_s: float = 180) -> LaunchResult:
        """Wait for the end, which must be a good one."""
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"{self._name} does not end"
        assert self.result is not None, self.error
        return self.result


def kill(beat: Beat) -> None:
    """SIGKILL for a rank's process."""
    os.kill(beat.pid, signal.SIGKILL)


def wait_for(happened: Callable[[], object], limit_s: float = 90) -> None:
    """Until something is true; fails when it is not in time."""
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def outcome(run_uri: str) -> dict[str, Any]:
    """Everything of a finished run that must be equal, bit for bit, however it was disturbed."""
    run = open_store(run_uri)
    rows = [json.loads(line) for line in run.read("metrics.jsonl").splitlines()]
    record = run.read_json("run.json")
    newest = sorted(entry.name for entry in run.entries("checkpoints") if entry.is_folder)[-1]
    return {
        "status": record["status"],
        "samples": record["samples"],
        "selected": record["selected"],
        "rows": [{key: value for key, value in row.items() if key not in _SPEEDS} for row in rows],
        "model": run.read("model/model.safetensors"),
        "last": [run.read(f"checkpoints/{newest}/{name}.safetensors") for name in ("model", "optim")],
        "evaluations": [run.read_json(f"evaluation/{split}.json") for split in ("val", "test")],
    }


def planned_samples(run: Store, dataset: Dataset) -> str:
    """The digest of samples that the plan of a run gives for all its epochs, by arithmetic alone."""
    record = run.read_json("run.json")
    same = record["identity"]
    counts = count_classes(dataset, record["split"])["train"]
    plan = Plan(counts, same["sampler.alpha"], same["train.seed"])
    size = same["train.batch_size"] * same["train.accumulation_steps"]
    steps = StepPlan(plan.num_draws, size, same["train.micro_batch_size"])
    digests = (
        samples_digest(request.epoch, request.step, request.index, request.rows)
        for epoch in range(record["epochs"])
        for request in training_requests(plan, steps, World(), epoch)
    )
    return f"{sum(digests) % 2**40:010x}"


def notes(run_uri: str) -> str:
    """The warnings that the user was shown, as run.json keeps them."""
    return "\n".join(open_store(run_uri).read_json("run.json")["notes"])


def command(settings: list[str], python: str) -> list[str]:
    """`xdist-train train demo` as a process of its own."""
    return [python, "-c", "from xdist_train.cli import run; run()", "train", "demo", *settings]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint folder with the latest digest."""
    digests = sorted(folder.glob("checkpoints/*/digest.json"), key=lambda path: path.stat().st_mtime)
    return digests[-1].parent if digests else None
