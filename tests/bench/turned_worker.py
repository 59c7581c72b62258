"""Workers of ours whose steps come in turns with another training's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.turns import TurnTaker
from xdist_train.training import loop
from xdist_train.training.worker import run_worker

__all__ = ["OURS", "run_turned_worker"]

OURS = "ours"


def run_turned_worker(values: dict[str, Any]) -> dict[str, Any]:
    """`run_worker`; turns are taken in the folder `turns` beside the cache."""
    folder = Path(values["order"].config.loader.cache_dir).parent / "turns"
    step = loop._Run.run_step
    takers: dict[int, TurnTaker] = {}

    def turned_step(run: loop._Run, batches: Any) -> None:
        rank = run.job.world.rank
        taker = takers.setdefault(rank, TurnTaker(folder, OURS, rank))
        taker.before_step()
        step(run, batches)

    loop._Run.run_step = turned_step  # type: ignore[method-assign]
    try:
        return run_worker(values)
    finally:
        loop._Run.run_step = step  # type: ignore[method-assign]
