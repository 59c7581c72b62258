"""Searches without Ray: run folders are written as a launch would, figures are arithmetic."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.runs import SEARCH, RunFolder
from cluster.store import open_store
from tests.records import RECORD
from tests.tune_spaces.written import write_space
from tune_spaces import ledger
from tune_spaces.config import SearchConfig
from tune_spaces.search import Plan, Search
from tune_spaces.space import Space
from tune_spaces.study import open_study
from tune_spaces.task import Task
from xdist_train.config import resolve_config
from xdist_train.training.early_stopping import lower_is_better
from xdist_train.training.record import RunRecord

__all__ = ["SPACE", "Clock", "figure_of", "open_search", "run_all", "run_task", "write_run"]

SPACE = write_space("optim.lr: {loguniform: [1.0e-4, 1.0]}\noptim.name: {choice: [adamw, sgd]}")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def open_search(
    storage: Path, *overrides: str, space: Space = SPACE, clock: Callable[[], float] = lambda: 0.0, **search: Any
) -> Search:
    """A start of search `s`, with what earlier starts left; each has a scratch folder of its own."""
    config = resolve_config("demo", ["train.epochs=9", f"storage.uri={storage}", *overrides])
    folder = RunFolder(open_store(str(storage)).child("s"), driver=uuid.uuid4().hex, record=SEARCH)
    earlier = folder.read_record()
    concurrency = search.pop("concurrency", 1)
    settings = SearchConfig(**{"sampler": "random", "scheduler": "none", "trials": 5, "grace_epochs": 1, **search})
    direction = "minimize" if lower_is_better(config.train.metric) else "maximize"
    plan = Plan(
        name="s",
        recipe="demo",
        space="made-up",
        space_keys=space,
        config=config,
        search=settings,
        located=space.locate(config),
        direction=direction,
        concurrency=concurrency,
        use_gpu=bool(settings.gpu_hours),
    )
    scratch = storage / "scratch" / uuid.uuid4().hex
    scratch.mkdir(parents=True)
    journal = scratch / ledger.JOURNAL
    ledger.fetch_journal(folder, journal)
    study = open_study(
        space,
        plan.located.params,
        sampler=settings.sampler,
        scheduler=settings.scheduler,
        direction=plan.direction,
        seed=settings.seed,
        grace_epochs=settings.grace_epochs,
        reduction_factor=settings.reduction_factor,
        journal=journal,
    )
    folder.claim()
    values = {"seconds": 0.0, "complete": [], "tested": [], "best": None, "attempts": [{}], **earlier}
    record = RunRecord(folder, {**values, "status": "running"})
    record.write()
    return Search(plan, study, record, journal, clock=clock)


def figure_of(config: Any, epochs: int) -> float:
    """Rises with epochs; best at a learning rate of 0.03, and sgd the better rule."""
    best = 0.9 - 0.1 * abs(math.log10(config.optim.lr / 0.03)) - 0.05 * (config.optim.name == "adamw")
    return best * (1 - 0.5**epochs) + config.train.seed * 1e-3


def write_run(search: Search, task: Task, status: str, figures: dict[int, float], **values: Any) -> None:
    """What a launch leaves of a run."""
    store = search.folder.store.child(task.place).child(task.name)
    best = max(figures, key=lambda epochs: figures[epochs], default=None)
    selected = None if best is None else {"epoch": best - 1, "step": 1, "metric": "m", "value": figures[best]}
    metric = f"val_{search.plan.metric}"
    rows = [{"kind": "epoch", "epoch": epochs - 1, metric: figure} for epochs, figure in figures.items()]
    store.write("metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    config = json.loads(json.dumps(task.config, default=lambda section: vars(section)))
    store.write("config.yaml", json.dumps(config).encode())
    record = {
        **RECORD,
        "status": status,
        "selected": selected if status != "running" else None,
        "epochs": len(figures),
        "seconds": {"train": 1.0 * len(figures), "evaluate": 0.5},
        "worker_seconds": 10.0 * len(figures),
        "micro_batch_size": 64,
    }
    store.write_json("run.json", {**record, **values})


def run_task(search: Search, task: Task, *, epochs: int | None = None) -> None:
    """Trains; `epochs` stops short, as a killed driver would: nothing is told of an end."""
    figures: dict[int, float] = {}
    for epoch in range(1, task.config.train.epochs + 1):
        figures[epoch] = figure_of(task.config, epoch)
        if verdict := search.report(task.name, epoch, figures[epoch]):
            write_run(search, task, verdict, figures)
            search.end(task.name)
            return
        if epoch == epochs:
            write_run(search, task, "running", figures)
            return
    write_run(search, task, "finished", figures)
    search.end(task.name)


def run_all(search: Search) -> None:
    """Trials one after the other until there are no more."""
    while (task := search.next()) is not None:
        run_task(search, task)
    assert search.live == []
