"""Chaos: SIGKILL of a random worker at a random step, 20 seeds, and what the run ends with.

Each seed is a run of its own (order, augmentation and first weights), undisturbed and then with one worker killed.
Equal means: weights of the selected model, model and optimiser of the last checkpoint, all rows of the history but
their speeds, figures of val and test, and the digest of all samples drawn are the same, bit for bit; and the digest
is the one that the plan gives by arithmetic alone. Figures are seconds of the killed run.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.store import open_store
from dataloading.dataset import Dataset
from tests.bench.results import Row, measured, versions
from tests.end_to_end.faults import LONG, Running, kill, outcome, planned_samples
from tests.end_to_end.small import Train, build_train, write_bands

__all__ = ["rows"]

COMMAND = "python -m tests.bench chaos"
_SEEDS = range(20)
_EPOCHS, _STEPS = 5, 12


def rows() -> Iterable[Row]:
    """A row a seed, and how many ended equal."""
    details = {"versions": versions("torch", "ray"), "command": COMMAND}
    results = _all_seeds()
    equal = sum(same for _, same, _ in results)
    yield measured("killed runs that ended equal", [equal], unit=f"of {len(results)}", goal="all", **details)
    for what, same, seconds in results:
        yield measured(f"{what}: {'equal' if same else 'NOT EQUAL'}", [seconds], unit="s", **details)


def _all_seeds() -> list[tuple[str, bool, float]]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    import ray

    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            dataset = write_bands(Path(name) / "bands")
            train = build_train(dataset, Path(name) / "runs")
            results = []
            for seed in _SEEDS:
                results.append(_one_seed(ray, train, dataset, seed))
                print(*results[-1], flush=True)
            return results
        finally:
            ray.shutdown()


def _one_seed(ray: Any, train: Train, dataset: Dataset, seed: int) -> tuple[str, bool, float]:
    draw = random.Random(seed)
    # The very last steps are left out: a run that has ended cannot be killed.
    rank, at = draw.randrange(2), draw.randrange(_EPOCHS * _STEPS - 4)
    epoch, step = divmod(at, _STEPS)
    undisturbed = outcome(train(f"whole-{seed}", *LONG, f"train.seed={seed}").run_uri)
    started = time.perf_counter()
    running = Running(ray, train, f"killed-{seed}", f"train.seed={seed}")
    beat = running.wait_until(epoch, step)[rank]
    kill(beat)
    killed = running.finish().run_uri
    seconds = time.perf_counter() - started
    run = open_store(killed)
    assert run.read_json("run.json")["group_starts"] == 2, "the run had ended before the signal"
    same = undisturbed == outcome(killed) and planned_samples(run, dataset) == undisturbed["samples"]
    return f"seed {seed}: worker {rank} killed at epoch {epoch + 1}, step {step} or just after", same, seconds
