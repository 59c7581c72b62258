"""Workers that note how long the loop waits for savings and steps, and for a plain copy of the same tensors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from xdist_train.training import loop
from xdist_train.training.upload import Uploads
from xdist_train.training.worker import run_worker

__all__ = ["run_timed_worker"]


def run_timed_worker(values: dict[str, Any]) -> dict[str, Any]:
    """`run_worker`; the seconds of savings, copies, steps and uploads are in `timed.json` beside the cache."""
    noted: dict[str, list[Any]] = {"savings": [], "copies": [], "steps": [], "uploads": []}
    save, step, keep = loop._Run.save, loop._Run.run_step, Uploads.keep

    def timed_save(run: loop._Run, *args: Any, **options: Any) -> None:
        # In turns, so that both meet the same machine.
        first = len(noted["savings"]) % 2
        if first:
            noted["copies"].append(_copy_seconds(run))
        started = time.perf_counter()
        save(run, *args, **options)
        noted["savings"].append(time.perf_counter() - started)
        if not first:
            noted["copies"].append(_copy_seconds(run))

    def timed_step(run: loop._Run, batches: Any) -> None:
        started = time.perf_counter()
        step(run, batches)
        noted["steps"].append((started, time.perf_counter()))

    def timed_keep(uploads: Uploads, saving: Any) -> None:
        started = time.perf_counter()
        keep(uploads, saving)
        noted["uploads"].append((started, time.perf_counter()))

    loop._Run.save, loop._Run.run_step, Uploads.keep = timed_save, timed_step, timed_keep  # type: ignore[method-assign]
    try:
        return run_worker(values)
    finally:
        (Path(values["order"].config.loader.cache_dir).parent / "timed.json").write_text(json.dumps(noted))


def _copy_seconds(run: loop._Run) -> float:
    """One copy of everything that a checkpoint holds, in memory."""
    model, optimizer, _ = run.job.learner.state()
    moments = [value for values in optimizer["state"].values() for value in values.values()]
    tensors = [value for value in (*model.values(), *moments) if isinstance(value, Tensor)]
    started = time.perf_counter()
    copies = [tensor.clone() for tensor in tensors]
    seconds = time.perf_counter() - started
    del copies
    return seconds
