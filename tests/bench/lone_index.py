"""What an index of any length costs a worker: opened, read at an epoch's start and in its middle.

python -m tests.bench.lone_index URI CACHE ROWS      prints one JSON object: milliseconds of each part, MB of its own

URI is of a small set with one shard, which all records lead to; ROWS of them are written where there are none. A
manifest as long would be of tens of GB, and is read by the first worker of a node alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cluster.world import World
from dataloading.config import AugmentConfig, LoaderConfig
from dataloading.dataset import open_dataset
from dataloading.loading.cache import Split, open_split
from dataloading.loading.loader import Loader
from dataloading.loading.plan import Plan, StepPlan, training_requests
from tests.bench.processes import private_bytes

_STRETCH = 10_000_000
_STEP = 256


def _write_index(path: Path, model: Split, rows: int) -> None:
    """Records of a small split over and over, in classes of equal size."""
    few = model.records(np.arange(model.num_images))
    records = np.lib.format.open_memmap(path, "w+", few.dtype, (rows,))
    for start in range(0, rows, _STRETCH):
        places = np.arange(start, min(start + _STRETCH, rows))
        stretch = few[places % len(few)]
        stretch["id"], stretch["label"] = places, places * len(model.class_counts) // rows
        records[start : start + _STRETCH] = stretch
    records.flush()


def main(uri: str, cache: Path, rows: int) -> dict[str, float]:
    """Milliseconds and MB."""
    torch.set_num_threads(1)
    dataset = open_dataset(uri)
    model = open_split(dataset, "given", "train", cache)
    path = cache / f"{rows}.npy"
    if not path.exists():
        _write_index(path, model, rows)
    before = private_bytes(os.getpid())["own"]
    started = time.perf_counter()
    shards = [Path(model._open(number).name) for number in range(len(dataset.info.shards))]
    split = Split(dataset, "given", "train", cache, path, shards, model._lease)
    found = {"open the index": 1000 * (time.perf_counter() - started)}
    plan = Plan(split.class_counts, 0.5, seed=0)
    steps = StepPlan(plan.num_draws, _STEP, _STEP)
    with Loader(
        split,
        dataset.info,
        LoaderConfig(backend="opencv", image_size=64),
        augment=AugmentConfig(),
        seed=0,
        device=torch.device("cpu"),
        threads=1,
    ) as loader:
        places = {"first batch": 0, "first batch in the middle of an epoch": steps.steps_per_epoch // 2}
        for name, start in {"": 0, **places}.items():  # once to warm up
            started = time.perf_counter()
            batches = loader.load(training_requests(plan, steps, World(), 0, start))
            next(batches)
            found[name] = 1000 * (time.perf_counter() - started)
            batches.close()  # type: ignore[attr-defined]
    del found[""]
    found["memory of its own, more than before"] = (private_bytes(os.getpid())["own"] - before) / 1e6
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
