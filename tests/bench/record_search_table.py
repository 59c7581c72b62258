"""`python -m tests.bench.record_search_table`: train every configuration of `search_space.yaml` once; some 25 minutes.

Each is trained as a `train` run on one worker is, but without Ray: the same checks, assembly and loop, in this
process. Rows that were trained are in `search_table.rows.jsonl` until all are there, so a recording that was
interrupted goes on.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cluster.config import digest
from cluster.world import World
from dataloading.dataset import Dataset
from tests.bench.results import hardware, versions
from tests.bench.search_table import (
    OVERRIDES,
    RECIPE,
    TABLE_PATH,
    SearchTable,
    Trained,
    build_images,
    table_settings,
    table_space,
    write_table,
)
from tune_spaces.space import overrides
from xdist_train.config import Config, resolve_config
from xdist_train.training.assembly import Assembly
from xdist_train.training.loop import Saving, run_loop
from xdist_train.training.messages import Progress
from xdist_train.training.preflight import prepare, with_absolute_paths
from xdist_train.training.state import TrainState

__all__ = ["record", "train_once"]

_ROWS_PATH = TABLE_PATH.with_suffix(".rows.jsonl")


def train_once(config: Config, values: dict[str, Any]) -> Trained:
    """One configuration to its end, as a worker that is alone trains it."""
    started = time.process_time()
    config = with_absolute_paths(config)
    prepared = prepare(config, "table")
    torch.set_num_threads(config.scale.cpus_per_worker)
    assembly = Assembly(
        config,
        prepared.dataset,
        world=World(0, 1),
        device=torch.device("cpu"),
        micro_batch_size=prepared.micro_batch_size,
    )
    try:
        outcome = run_loop(assembly.job, TrainState(), _NothingKept())
    finally:
        assembly.close()
    curve = [row[f"val_{config.train.metric}"] for row in outcome.state.history if row["kind"] == "epoch"]
    reason = f"{outcome.failure.kind}: {outcome.failure.message}" if outcome.failure else ""
    selection = outcome.state.selection
    assert reason or (selection is not None and max(curve) == selection.value), "the best epoch is the selected one"
    return Trained(values=values, curve=tuple(curve), cpu_seconds=time.process_time() - started, reason=reason)


class _NothingKept:
    """A reporter that lets checkpoints go."""

    def progress(self, progress: Progress) -> None:
        """Shown by the table as a whole."""

    def stop_asked(self) -> bool:
        return False

    def make_room(self) -> None:
        """Nothing is kept."""

    def save(self, saving: Saving) -> None:
        if saving.snapshot is not None:
            saving.snapshot.release()


def record(folder: Path) -> SearchTable:
    """All rows, those of an interrupted recording with them; images go to the folder."""
    space, settings = table_space(), table_settings()
    dataset = build_images(folder)
    notes = {"fingerprint": dataset.info.fingerprint, "versions": versions("torch", "numpy"), "hardware": hardware()}
    rows = _recorded(digest({**settings, **notes}))
    grid = [space.values_of(params) for params in space.grid()]
    with _ROWS_PATH.open("a") as file:
        for number, values in enumerate(grid[len(rows) :], len(rows) + 1):
            rows.append(train_once(_config(dataset, folder, values), values))
            file.write(json.dumps(asdict(rows[-1])) + "\n")
            file.flush()
            _show(rows[-1], f"{number} of {len(grid)}")
    epochs = resolve_config(RECIPE, OVERRIDES).train.epochs
    return SearchTable(rows, epochs, notes)


def _config(dataset: Dataset, folder: Path, values: dict[str, Any]) -> Config:
    places = (f"data.uri={dataset.store.uri}", f"storage.uri={folder / 'runs'}", f"loader.cache_dir={folder / 'cache'}")
    return resolve_config(RECIPE, [*OVERRIDES, *overrides(values), *places])


def _recorded(begun: str) -> list[Trained]:
    """Rows of an interrupted recording; one under other settings, or on another machine, begins anew."""
    text = _ROWS_PATH.read_text() if _ROWS_PATH.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # without a torn one
    lines = lines if lines[:1] == [begun] else [begun]
    _ROWS_PATH.write_text("".join(f"{line}\n" for line in lines))
    found = [json.loads(line) for line in lines[1:]]
    return [Trained(**{**row, "curve": tuple(row["curve"])}) for row in found]


def _show(row: Trained, position: str) -> None:
    figure = f"{row.figure:.3f}" if row.figure is not None else row.reason[:60]
    print(f"{position}: {' '.join(overrides(row.values))}: {figure} ({row.cpu_seconds:.1f} CPU s)", flush=True)


def main() -> int:
    """Record the table and put it in its place."""
    with tempfile.TemporaryDirectory(prefix="search-table-") as folder:
        table = record(Path(folder))
    write_table(table, TABLE_PATH, table_settings())
    _ROWS_PATH.unlink()
    failed = sum(row.figure is None for row in table.rows)
    seconds = sum(row.cpu_seconds for row in table.rows if not math.isnan(row.cpu_seconds))
    print(f"{len(table.rows)} rows, {failed} failed, {seconds / 60:.0f} minutes of CPU; best {dict(table.best.values)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
