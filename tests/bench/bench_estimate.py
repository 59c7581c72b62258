"""`xdist-train estimate` against what can be measured here, and what it says of 8, 64 and 512 GPUs.

Measured: steps of ResNet-18 (224 px, 16 images a worker, 45 MB of gradients, gloo, one thread each) by 1, 2 and 4
processes on this machine, and by 2 on hosts of their own (network namespaces) whose cables carry 1,000, 200 and 50
Mbit/s. Estimated: the same from the one process's rate alone. `bench_fetch` does likewise with a fetch from S3. What is
said of many GPUs is arithmetic that nobody has measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.processes import KEEPS_FREED_MEMORY
from tests.bench.bench_scaling import CLASSES, MICRO_BATCH
from tests.bench.results import BenchSkippedError, Row, compare, measured, versions
from tests.bench.timed_rank import config
from tests.hosts import Host, Network, why_no_hosts
from xdist_train.estimation.estimate import HERE, run_estimate
from xdist_train.estimation.model import Epoch, Rates, Work, estimate_epoch
from xdist_train.estimation.network import network_cost

__all__ = ["MBIT", "ROUNDS", "estimated", "narrow", "rows"]

COMMAND = "python -m tests.bench estimate"
ROUNDS = 3
PROCESSES = (1, 2, 4)
MBIT = (1000, 200, 50)
GPUS, IMAGES = (8, 64, 512), (84_000, 1_000_000, 100_000_000)
_DETAILS = {"versions": versions("torch"), "command": COMMAND}


def rows() -> Iterable[Row]:
    """Measured beside estimated; then the estimates alone."""
    if reason := why_no_hosts():
        raise BenchSkippedError(reason)
    found: dict[tuple[int, int], list[float]] = {}
    for _ in range(ROUNDS):
        for case in [*((count, 0) for count in PROCESSES), *((2, mbit) for mbit in MBIT)]:
            found.setdefault(case, []).append(_step_seconds(*case))
    for (count, mbit), seconds in found.items():
        alone = found[1, 0]
        estimates = [estimated(count, mbit, MICRO_BATCH / one).later for one in alone]
        where = f"on hosts with {mbit:,} Mbit/s between them" if mbit else "on this machine"
        what = f"a step of {count} process(es) {where}"
        yield compare(what, seconds, "the estimate", estimates, unit="s", goal="", **_DETAILS)
    for images in IMAGES:
        for gpus in GPUS:
            yield _large(gpus, images)


def _step_seconds(count: int, mbit: int) -> float:
    """Median step of the slowest rank."""
    with tempfile.TemporaryDirectory() as name, _hosts(count if mbit else 0, mbit) as hosts:
        folder = Path(name)
        places: Sequence[Host | None] = hosts or [None] * count
        ranks = [_start(number, count, folder, place) for number, place in enumerate(places)]
        try:
            for rank in ranks:
                assert rank.wait(600) == 0, "a rank failed"
        finally:
            for rank in ranks:
                rank.kill()
        steps = [json.loads((folder / f"{number}.json").read_text()) for number in range(count)]
    return max(sorted(mine)[len(mine) // 2] for mine in steps)


def _start(rank: int, count: int, folder: Path, host: Host | None) -> subprocess.Popen[bytes]:
    inside, extra = (host.inside, host.environment) if host else ((), {})
    command = [*inside, sys.executable, "-m", "tests.bench.timed_rank", str(rank), str(count), str(folder)]
    return subprocess.Popen(command, env={**os.environ, **KEEPS_FREED_MEMORY, **extra})


@contextmanager
def _hosts(count: int, mbit: int) -> Iterator[list[Host]]:
    """Hosts that receive at most so many Mbit/s each."""
    if not count:
        yield []
        return
    network = Network()
    try:
        hosts = [network.add() for _ in range(count)]
        for host in hosts:
            narrow(host, mbit)
        yield hosts
    finally:
        network.remove()


def narrow(host: Host, mbit: int) -> None:
    """The host receives at most so many Mbit/s from now on."""
    shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", host.cable, *shape], check=True)


def estimated(count: int, mbit: int, rate: float, stored_bytes: float = 0.0) -> Epoch:
    """One step of each process and a fetch, from the rate of one process alone."""
    cores = os.cpu_count() or 1
    cost = network_cost(config(count), CLASSES)
    work = Work(
        train_images=MICRO_BATCH * count,
        val_images=0,
        step_size=MICRO_BATCH * count,
        micro_batch_size=MICRO_BATCH,
        workers=count,
        nodes=1,
        gradient_bytes=4.0 * cost.trainable,
        stored_bytes=stored_bytes,
        decoded_images=0,
    )
    here = Rates(
        train=rate * min(1.0, cores / count),
        input=1e9,
        link=mbit * 1e6 / 8 if mbit else HERE.link,
        latency_s=HERE.latency_s,
        overlap=HERE.overlap,
        storage=1e9,
        node=mbit * 1e6 / 8 if mbit else 1e9,
        decode_node=1e9,
        step_variation=0.02,
    )
    return estimate_epoch(work, here)


def _large(gpus: int, images: int) -> Row:
    """Recipe `oct` with ResNet-50 and 256 images a step and GPU, at most 4,096."""
    step = min(4096, 256 * gpus)
    found = run_estimate(
        "oct",
        [
            f"hardware.images={images}",
            "hardware.device=h100",
            "hardware.input_images_per_s=9000",
            f"scale.num_workers={gpus}",
            f"train.batch_size={step}",
            "model.weights=none",
        ],
    )
    epoch = found.epoch
    what = (
        f"not measured: ResNet-50 on {gpus} H100 (8 a node, 100 Gbit/s), {images:,} images, steps of {step}: an epoch; "
        f"held up by {epoch.bottleneck}, the first ({epoch.first:,.1f} s) by {epoch.first_bottleneck}"
    )
    return replace(measured(what, [epoch.later], unit="s", **_DETAILS), hardware="none: an estimate")
