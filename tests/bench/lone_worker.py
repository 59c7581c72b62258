"""One rank of a training without Ray, which says how long its parts took: a process whose memory can be looked at.

python -m tests.bench.lone_worker URI CACHE STEPS      prints one JSON object
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cluster.world import World
from dataloading.dataset import open_dataset
from dataloading.loading.plan import training_requests
from xdist_train.config import resolve_config
from xdist_train.training.assembly import Assembly
from xdist_train.training.preflight import prepare

__all__ = ["SETTINGS"]

SETTINGS = (
    "model.backbone=small_cnn",
    "loader.image_size=64",
    "train.batch_size=32",
    "scale.num_workers=1",
    "schedule.warmup_epochs=0",
)


def main(uri: str, cache: str, steps: int) -> dict[str, float]:
    """Steps from an epoch's start and from its middle; seconds of each part."""
    torch.set_num_threads(1)
    config = resolve_config("demo", [f"data.uri={uri}", f"loader.cache_dir={cache}", *SETTINGS])
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        value = function(*arguments, **options)
        seconds[name] = time.perf_counter() - started
        return value

    torch.zeros(1).add_(1)  # what a first operation loads is no part of anything below
    timed("the driver's checks", prepare, config, "bench")
    dataset = timed("open the set", open_dataset, uri)
    size = config.train.batch_size
    assembly = timed(
        "open splits, build model and loader",
        Assembly,
        config,
        dataset,
        world=World(),
        device=torch.device("cpu"),
        micro_batch_size=size,
    )
    last = assembly.job.steps.steps_per_epoch
    for name, start in (("first batch", 0), ("first batch in the middle of an epoch", last // 2)):
        stream = _batches(assembly, start)
        first = timed(name, next, stream)
        _train(assembly, start, [first], stream, min(steps, last - start))
    assembly.close()
    return seconds


def _batches(assembly: Assembly, start: int) -> Iterator[Any]:
    job = assembly.job
    return assembly.loader.load(training_requests(job.plan, job.steps, job.world, 0, start))


def _train(assembly: Assembly, start: int, first: list[Any], stream: Iterator[Any], steps: int) -> None:
    job = assembly.job

    def batches() -> Iterator[Any]:
        yield from first
        yield from stream

    taken = batches()
    for step in range(start, start + steps):
        begin, end = job.steps.span(step)
        weight_sum = job.learner.loss.weight_sum(job.plan.classes(0, begin, end))
        job.learner.step(taken, 1, weight_sum, 1.0)
    taken.close()  # type: ignore[attr-defined]
    stream.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
