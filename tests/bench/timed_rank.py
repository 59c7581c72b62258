"""One rank of a group that trains for a while: `python -m tests.bench.timed_rank RANK SIZE FOLDER`.

ResNet-18 at 224 px, one thread, one batch that stays in memory, gloo; ranks meet by a file in FOLDER, where each leaves
its seconds a step in `RANK.json`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.world import World
from dataloading.loading.batch import Batch
from tests.bench.bench_scaling import CLASSES, MICRO_BATCH, SIZE_PX, build_learner
from xdist_train.config import TrainConfig, resolve_config

__all__ = ["config"]

WARM_UP, STEPS = 2, 8


def config(workers: int):  # type: ignore[no-untyped-def]
    """Of the run that a rank's steps are of."""
    micro = [f"train.batch_size={MICRO_BATCH * workers}", f"scale.num_workers={workers}"]
    return resolve_config("demo", ["model.backbone=resnet18", f"loader.image_size={SIZE_PX}", *micro])


def main(rank: int, size: int, folder: Path) -> None:
    """Meet, train, leave the figures."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    learner = build_learner(TrainConfig(batch_size=size * MICRO_BATCH), World(rank, size))
    images = torch.zeros((MICRO_BATCH, 1, SIZE_PX, SIZE_PX), dtype=torch.uint8).random_(0, 256)
    rows = torch.arange(MICRO_BATCH)
    batches = itertools.repeat(Batch(images, rows % CLASSES, rows, 0, 0, rank))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        learner.step(batches, 1, float(MICRO_BATCH * size), 1.0)
        seconds.append(time.perf_counter() - started)
    (folder / f"{rank}.json").write_text(json.dumps(seconds[WARM_UP:]))
    if size > 1:
        with contextlib.suppress(RuntimeError):  # another has gone
            dist.barrier()
        os._exit(0)  # gloo's threads at times abort a process that takes its group away


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
