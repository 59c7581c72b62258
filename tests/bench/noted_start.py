"""A start whose moments are noted, in the driver's process and in its workers': what stands for `xdist-train`.

    noted_start.py FILE train demo ...      FILE gets a line a moment: name, seconds since 1970, rank (-1: driver)

Wrappers note when a part has ended; the product knows nothing of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["NOTES", "note", "noted", "run_noted_worker"]

NOTES = "notes.jsonl"
"""The file's name; it lies beside the cache, where workers find it."""


def note(path: Path, name: str, rank: int = -1) -> None:
    """This moment."""
    with path.open("a") as stream:
        stream.write(json.dumps({"name": name, "time": time.time(), "rank": rank}) + "\n")


def noted(path: Path, name: str, function: Callable[..., Any], rank: int = -1) -> Callable[..., Any]:
    """The function; its end is noted."""

    def call(*args: Any, **options: Any) -> Any:
        value = function(*args, **options)
        note(path, name, rank)
        return value

    return call


def run_noted_worker(values: dict[str, Any]) -> dict[str, Any]:
    """`run_worker` with its moments noted, in a process that is this run's alone."""
    import ray.train

    from xdist_train.training import assembly, loop, worker
    from xdist_train.training.assembly import Assembly

    path = Path(values["order"].config.loader.cache_dir).parent / NOTES
    rank = ray.train.get_context().get_world_rank()
    note(path, "worker begins", rank)
    stepped: list[bool] = []
    step = loop._Run.run_step

    def run_step(run: loop._Run, batches: Any) -> None:
        step(run, batches)
        if not stepped:
            stepped.append(True)
            note(path, "first step", rank)

    loop._Run.run_step = run_step  # type: ignore[method-assign]
    parts = {
        (worker, "_agree_attempt"): "attempt agreed",
        (worker, "open_dataset"): "data set opened",
        (assembly, "_open_splits"): "splits opened",
        (Assembly, "_build_learner"): "model built",
        (Assembly, "_build_job"): "loader built",
        (worker, "_resume"): "resumed",
    }
    for (owner, name), said in parts.items():
        setattr(owner, name, noted(path, said, getattr(owner, name), rank))
    return worker.run_worker(values)


def _noted_connect(path: Path, connect: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def noted_connect() -> Iterator[Any]:
        with connect() as ray:
            note(path, "Ray runs")
            # Not before: Ray reads its environment, which `connect` sets, as it is imported.
            from xdist_train.training import worker

            worker.run_worker = run_noted_worker  # type: ignore[assignment]
            note(path, "trainer's imports")
            yield ray

    return noted_connect


def _main(path: Path, arguments: list[str]) -> int:
    note(path, "python runs")
    from xdist_train import config
    from xdist_train.cli import main

    note(path, "command line read")
    config.resolve_config = noted(path, "config", config.resolve_config)
    from xdist_train.training import job, launch

    note(path, "driver's imports")
    launch.prepare = noted(path, "checks without Ray", launch.prepare)
    launch.connect = _noted_connect(path, launch.connect)
    launch.check_nodes = noted(path, "checks with Ray", launch.check_nodes)
    launch._claim = noted(path, "run claimed", launch._claim)
    launch.start_here = noted(path, "monitor asked for", launch.start_here)
    launch.build_trainer = noted(path, "trainer built", job.build_trainer)
    return main(arguments)


if __name__ == "__main__":
    from tests.bench import noted_start  # by its name, as workers import it

    sys.exit(noted_start._main(Path(sys.argv[1]), sys.argv[2:]))
